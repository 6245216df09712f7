"""Command lines of generation, synthesis, bitstreams and cost: they parse and print."""
