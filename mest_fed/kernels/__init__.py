"""Sparse kernels: so far the torch reference path."""

from mest_fed.kernels.reference import (
    ConvGeometry,
    SparseConv2dFunction,
    SparseLinearFunction,
    SparseWeight,
    gather,
    scatter,
)

__all__ = [
    "ConvGeometry",
    "SparseConv2dFunction",
    "SparseLinearFunction",
    "SparseWeight",
    "gather",
    "scatter",
]
