"""Trained networks in use: predictions, and files for other programs."""
