"""Training from exported job files without PyTorch: the standard library and NumPy (1.21 and later) only."""
