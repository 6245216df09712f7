"""Training that PyTorch and the board share: precision, learning rate, batches, the gates' cost term, descent."""
