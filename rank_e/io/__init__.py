"""Files that are read and written: hashes, headers, checkpoints, and code that is imported by name."""
