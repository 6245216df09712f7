"""Command lines of devices, benches and board: they parse and print."""
