"""Command lines of training, export and demo: they parse and print."""
