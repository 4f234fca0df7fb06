"""Products with compact weights: compiled kernels, a torch reference, and which of them runs.

How slots stand for weights needs no torch. Products do, and are imported when they are asked for.
"""

from typing import TYPE_CHECKING

from mest_fed.kernels.storage import Channels, Kernels, StorageFormat, Strips
from mest_fed.lazy_names import lazy_names

if TYPE_CHECKING:
    from mest_fed.kernels.choice import PADDED as PADDED
    from mest_fed.kernels.choice import Case as Case
    from mest_fed.kernels.choice import Choice as Choice
    from mest_fed.kernels.choice import case_of as case_of
    from mest_fed.kernels.choice import choose as choose
    from mest_fed.kernels.functions import How as How
    from mest_fed.kernels.functions import SparseProduct as SparseProduct
    from mest_fed.kernels.native import available as available
    from mest_fed.kernels.native import scratch_bytes as scratch_bytes
    from mest_fed.kernels.native import torch_threads as torch_threads
    from mest_fed.kernels.native import variant as variant
    from mest_fed.kernels.weight import ConvGeometry as ConvGeometry
    from mest_fed.kernels.weight import SparseWeight as SparseWeight
    from mest_fed.kernels.weight import gather as gather
    from mest_fed.kernels.weight import scatter as scatter

_HOMES = {
    "mest_fed.kernels.choice": ("PADDED", "Case", "Choice", "case_of", "choose"),
    "mest_fed.kernels.functions": ("How", "SparseProduct"),
    "mest_fed.kernels.native": ("available", "scratch_bytes", "torch_threads", "variant"),
    "mest_fed.kernels.weight": ("ConvGeometry", "SparseWeight", "gather", "scatter"),
}
__all__ = ["Channels", "Kernels", "StorageFormat", "Strips"]
__all__ += sorted(name for names in _HOMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _HOMES, globals())
