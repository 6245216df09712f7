"""Models of the hardware: how products are lowered, cycles of RTL and HLS kernel, resources."""
