"""Sparse training on compact storage: schemes, masks, mutation. Needs numpy alone."""

from mest_fed.catalogue import DISTRIBUTIONS, METHODS, SCHEMES
from mest_fed.sparsity.distribution import (
    format_distribution,
    layer_counts,
    matches,
    parse_distribution,
)
from mest_fed.sparsity.layout import Layout
from mest_fed.sparsity.mask import (
    Mask,
    carry,
    keep_best,
    magnitude_mask,
    nested_order,
    select_best,
    slot_objection,
)
from mest_fed.sparsity.methods import FedDst, MestEM, MestEMS, RigL, Set, Static, build_method
from mest_fed.sparsity.mutation import Bounds, Method, grow
from mest_fed.sparsity.schedules import Interval
from mest_fed.sparsity.schemes import base_scheme, layout_for
from mest_fed.sparsity.state import ModelSpec, SparseState

__all__ = [
    "DISTRIBUTIONS",
    "METHODS",
    "SCHEMES",
    "Bounds",
    "FedDst",
    "Interval",
    "Layout",
    "Mask",
    "MestEM",
    "MestEMS",
    "Method",
    "ModelSpec",
    "RigL",
    "Set",
    "SparseState",
    "Static",
    "base_scheme",
    "build_method",
    "carry",
    "format_distribution",
    "grow",
    "keep_best",
    "layer_counts",
    "layout_for",
    "magnitude_mask",
    "matches",
    "nested_order",
    "parse_distribution",
    "select_best",
    "slot_objection",
]
