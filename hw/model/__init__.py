"""How long and how large: cycles of RTL and HLS kernel, resources of a design."""
