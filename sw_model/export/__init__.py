"""Training runs as job files for the board."""
