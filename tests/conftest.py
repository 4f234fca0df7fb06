"""What all tests need of their process."""

import os
import signal
import tempfile

import torch

# The tensors here are too small to share among threads, and machines are busy.
torch.set_num_threads(1)

# A shell that starts tests in the background has them ignore Ctrl-C, and so would every process
# that they start and stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Measured peaks and decoded data are cached; what an earlier run left there shall decide nothing.
_cache = tempfile.TemporaryDirectory(prefix="mest-fed-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name
