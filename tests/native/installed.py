"""Say which kernels and runtime an installed mest-fed has; fail if they are not native."""

import mest_fed
from mest_fed.kernels import _native
from mest_fed.runtime.native_table import module

print(f"mest-fed {mest_fed.__version__}, native kernels: {_native.__file__}")
print(f"native runtime: {module().__file__}, {module().variant()}")
