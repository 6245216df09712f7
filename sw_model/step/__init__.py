"""Training with whole steps in passes of the fabric: norm = "fabric" of a recipe."""
