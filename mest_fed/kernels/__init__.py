"""Products with compact weights: compiled kernels, a torch reference, and which of them runs."""

from mest_fed.kernels.choice import PADDED, Case, Choice, case_of, choose
from mest_fed.kernels.functions import How, SparseProduct
from mest_fed.kernels.native import available, scratch_bytes, torch_threads, variant
from mest_fed.kernels.weight import (
    Channels,
    ConvGeometry,
    Kernels,
    SparseWeight,
    StorageFormat,
    Strips,
    gather,
    scatter,
)

__all__ = [
    "PADDED",
    "Case",
    "Channels",
    "Choice",
    "ConvGeometry",
    "How",
    "Kernels",
    "SparseProduct",
    "SparseWeight",
    "StorageFormat",
    "Strips",
    "available",
    "case_of",
    "choose",
    "gather",
    "scatter",
    "scratch_bytes",
    "torch_threads",
    "variant",
]
