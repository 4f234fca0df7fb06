"""Sparse layers, conversion of any module, and the models."""

from mest_fed.catalogue import MODELS
from mest_fed.errors import DensityWarning
from mest_fed.nn.attention import SparseAttention
from mest_fed.nn.convert import sparsify
from mest_fed.nn.densities import LayerDensity, layer_densities, whole_density
from mest_fed.nn.eligible import Reason, Selection, sparsifiable
from mest_fed.nn.flow import Ends
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.models import Sparsity, build_model, build_shell
from mest_fed.nn.mutator import MaskGroup, Mutator, mask_groups, match_masks
from mest_fed.nn.plain import to_dense
from mest_fed.nn.products import SparseConv1d, SparseConv2d, SparseLinear
from mest_fed.nn.state import (
    UnsentBuffers,
    model_spec,
    read_state,
    write_state,
)

__all__ = [
    "MODELS",
    "DensityWarning",
    "Ends",
    "LayerDensity",
    "MaskGroup",
    "Mutator",
    "Reason",
    "Selection",
    "SparseAttention",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "Sparsity",
    "UnsentBuffers",
    "build_model",
    "build_shell",
    "layer_densities",
    "mask_groups",
    "match_masks",
    "model_spec",
    "read_state",
    "sparsifiable",
    "sparsify",
    "to_dense",
    "whole_density",
    "write_state",
]
