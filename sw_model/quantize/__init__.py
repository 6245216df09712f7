"""Quantizers: affine grids, StatQuant, other methods, and their compiled CPU kernels."""
