"""What is looked at before anything runs: files, sizes, disk and memory."""
