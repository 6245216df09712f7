"""A whole training step in passes of the fabric: nodes, parameters of channels, ranges, the executor, its engines."""
