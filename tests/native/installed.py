"""Say which kernels an installed mest-fed computes with; fail if they are not native."""

import mest_fed
from mest_fed.kernels import _native

print(f"mest-fed {mest_fed.__version__}, native kernels: {_native.__file__}")
