"""Sparse layers, conversion of any module, and the models."""

from mest_fed.nn.convert import sparsifiable, sparsify, to_dense
from mest_fed.nn.groups import MaskGroup, mask_groups
from mest_fed.nn.layers import SparseConv2d, SparseLayer, SparseLinear
from mest_fed.nn.models import MODELS, Sparsity, build_model, build_shell
from mest_fed.nn.mutator import Mutator
from mest_fed.nn.state import ModelSpec, SparseState, model_spec, read_state, write_state

__all__ = [
    "MODELS",
    "MaskGroup",
    "ModelSpec",
    "Mutator",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "SparseState",
    "Sparsity",
    "build_model",
    "build_shell",
    "mask_groups",
    "model_spec",
    "read_state",
    "sparsifiable",
    "sparsify",
    "to_dense",
    "write_state",
]
