"""Networks of others: their products quantized in place, and what a training loop of their own needs."""
