"""One thread for torch: the tensors here are too small to share, and machines are busy."""

import torch

torch.set_num_threads(1)
