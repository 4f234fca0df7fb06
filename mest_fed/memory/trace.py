"""A model as the footprint sees it: its state, and a skeleton of it that can train without data."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.kernels.native import scratch_of
from mest_fed.memory.rehearsal import rehearse
from mest_fed.nn import ModelSpec, SparseLayer, model_spec

#: Images of the pass that makes the kernels take their scratch memory.
_SCRATCH_IMAGES = 4


@dataclass(frozen=True)
class ModelTrace:
    """Sizes of a model, in bytes unless said otherwise, and its skeleton.

    Parameters
    ----------
    spec : ModelSpec
        The sparse layers and dense tensors.
    skeleton : nn.Module
        The model on torch's meta device: shapes, and no memory.
    input_shape : tuple of int
        (channels, height, width) of an image.
    dense_parameters : int
        Parameters outside the sparse layers.
    buffers : int
        Running statistics and the like.
    scratch : int
        What the compiled kernels keep as scratch memory for each thread, beyond what the rehearsal
        has them take (which stands in the baseline); measured with a small batch.
    known : dict
        Footprints that were worked out.
    """

    spec: ModelSpec
    skeleton: nn.Module
    input_shape: tuple[int, ...]
    dense_parameters: int
    buffers: int
    scratch: int
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def image(self) -> int:
        """One image as float32."""
        return 4 * math.prod(self.input_shape)

    def at(self, live: Mapping[str, int]) -> nn.Module:
        """Return a skeleton whose sparse layers have so many live granules, by layer."""
        model = skeleton_of(self.skeleton)
        for name, count in live.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, SparseLayer)
            values = torch.empty(count, layer.layout.width, device="meta")
            layer.values = nn.Parameter(values)
            layer.slots = torch.empty(count, dtype=torch.int32, device="meta")
        return model


def trace_model(model: nn.Module, input_shape: tuple[int, ...]) -> ModelTrace:
    """Trace a (sparse or dense) model.

    The model stays as it is, its buffers and gradients included; nothing is drawn.

    Parameters
    ----------
    model : nn.Module
        Maps (n, *input_shape) to logits.
    input_shape : tuple of int
        (channels, height, width) of an image.
    """
    spec = model_spec(model)
    parameters = {name for name, _ in model.named_parameters()}
    sizes = {name: 4 * math.prod(shape) for name, shape in spec.dense.items()}
    return ModelTrace(
        spec=spec,
        skeleton=skeleton_of(model),
        input_shape=tuple(input_shape),
        dense_parameters=sum(size for name, size in sizes.items() if name in parameters),
        buffers=sum(size for name, size in sizes.items() if name not in parameters),
        scratch=_scratch(model, input_shape) if spec.groups else 0,
    )


def skeleton_of(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device without copying its numbers."""
    memo: dict[int, Tensor] = {}
    for parameter in model.parameters():
        shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        memo[id(parameter)] = nn.Parameter(shape, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
    return copy.deepcopy(model, memo)


def _scratch(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Measure what the kernels of a thread take for a model, beyond what a rehearsal takes."""
    twin = copy.deepcopy(model).train()
    images = torch.zeros(_SCRATCH_IMAGES, *input_shape)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken = scratch_of(lambda: twin(images).sum().backward())
        return max(0, taken - _rehearsed())
    finally:
        torch.set_num_threads(before)


@cache
def _rehearsed() -> int:
    return scratch_of(rehearse)
