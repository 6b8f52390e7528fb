"""What every stage shares, and how a stage runs as a process."""
