"""One thread for all tests: the networks are tiny, and several threads make them many times slower."""

import torch

torch.set_num_threads(1)
