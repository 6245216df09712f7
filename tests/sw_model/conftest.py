"""One thread for all tests here: their tensors are small, and waiting threads slow down whatever else runs."""

import torch

torch.set_num_threads(1)
