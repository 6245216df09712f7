"""Quantized layers, networks, gates, normalisation, and what they cost."""
