"""A model as the footprint sees it: its state, and a meta model that can train without data."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.described import one_line
from mest_fed.kernels import torch_threads
from mest_fed.kernels.native import scratch_of
from mest_fed.memory.meter import warm_up
from mest_fed.nn import ModelSpec, SparseLayer, model_spec

#: Images of the pass that makes the kernels take their scratch memory.
_SCRATCH_IMAGES = 4


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of a batch."""
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


@dataclass(frozen=True)
class TrainingLoss:
    """What a step minimises, whose tensors are part of its memory; cross-entropy by default.

    Parameters
    ----------
    total : callable
        (outputs, targets) -> the sum of a batch's losses, a scalar.
    target_shape : tuple of int
        Of one example's target.
    target_dtype : torch.dtype
        Of targets.
    """

    total: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    target_shape: tuple[int, ...] = ()
    target_dtype: torch.dtype = torch.int64

    def targets(self, count: int, device: str) -> Tensor:
        """Return targets of so many examples, all zero."""
        return torch.zeros(count, *self.target_shape, dtype=self.target_dtype, device=device)


CROSS_ENTROPY = TrainingLoss()


def _stand_in(outputs: Tensor, targets: Tensor) -> Tensor:
    """Take what a softmax and its gradient take, whatever the targets are."""
    return nn.functional.log_softmax(outputs, dim=-1).square().sum()


def _traceable(loss: TrainingLoss, meta_model: nn.Module, inputs: Tensor) -> TrainingLoss:
    """Return a loss, or a stand-in for one that cannot be computed without numbers."""
    try:
        outputs = meta_model.train()(inputs)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return loss  # a model that cannot be traced either is measured as a whole
    try:
        loss.total(outputs, loss.targets(len(inputs), "meta"))
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        warnings.warn(
            f"the loss cannot be traced without numbers ({one_line(error)}); "
            "plans count it as a softmax",
            RuntimeWarning,
            stacklevel=3,
        )
        return replace(loss, total=_stand_in)
    return loss


@dataclass(frozen=True)
class ModelTrace:
    """Sizes of a model, in bytes unless said otherwise, and its meta_model.

    Parameters
    ----------
    spec : ModelSpec
        The sparse layers and dense tensors.
    meta_model : nn.Module
        The model on torch's meta device: shapes, and no memory.
    input_shape : tuple of int
        Of one input, such as (channels, height, width).
    dense_parameters : int
        Parameters outside the sparse layers.
    buffers : int
        Running statistics and the like.
    scratch : int
        What the compiled kernels keep as scratch memory for each thread, beyond what the warm-up
        has them take (which stands in the baseline); measured with a small batch.
    input_dtype : torch.dtype
        Of the inputs: float32, or int64 for tokens.
    loss : TrainingLoss
        What training minimises.
    known : dict
        Footprints that were worked out.
    """

    spec: ModelSpec
    meta_model: nn.Module
    input_shape: tuple[int, ...]
    dense_parameters: int
    buffers: int
    scratch: int
    input_dtype: torch.dtype = torch.float32
    loss: TrainingLoss = CROSS_ENTROPY
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def image(self) -> int:
        """One input."""
        return self.input_dtype.itemsize * math.prod(self.input_shape)

    def at(self, active: Mapping[str, int]) -> nn.Module:
        """Return a meta model whose sparse layers have so many active granules, by layer."""
        model = meta_model_of(self.meta_model)
        for name, count in active.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, SparseLayer)
            values = torch.empty(count, layer.layout.width, device="meta")
            layer.values = nn.Parameter(values)
            layer.slots = torch.empty(count, dtype=torch.int32, device="meta")
        return model


def trace_model(
    model: nn.Module,
    input_shape: tuple[int, ...],
    input_dtype: torch.dtype = torch.float32,
    loss: TrainingLoss = CROSS_ENTROPY,
) -> ModelTrace:
    """Trace a (sparse or dense) model.

    The model stays as it is, its buffers and gradients included; nothing is drawn.

    Parameters
    ----------
    model : nn.Module
        Maps (n, *input_shape) to logits.
    input_shape : tuple of int
        Of one input, such as (channels, height, width).
    input_dtype : torch.dtype
        Of the inputs: float32, or int64 for tokens.
    loss : TrainingLoss
        What training minimises. One that needs numbers is counted as a softmax; a warning says so.
    """
    spec = model_spec(model)
    parameters = {name for name, _ in model.named_parameters()}
    sizes = {name: 4 * math.prod(shape) for name, shape in spec.dense.items()}
    return ModelTrace(
        spec=spec,
        meta_model=meta_model_of(model),
        input_shape=tuple(input_shape),
        dense_parameters=sum(size for name, size in sizes.items() if name in parameters),
        buffers=sum(size for name, size in sizes.items() if name not in parameters),
        scratch=_scratch(model, input_shape, input_dtype) if spec.groups else 0,
        input_dtype=input_dtype,
        loss=_traceable(
            loss,
            meta_model_of(model),
            torch.empty(2, *input_shape, dtype=input_dtype, device="meta"),
        ),
    )


def meta_model_of(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device without copying its numbers."""
    memo: dict[int, Tensor] = {}
    for parameter in model.parameters():
        shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        memo[id(parameter)] = nn.Parameter(shape, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
    return copy.deepcopy(model, memo)


def _scratch(model: nn.Module, input_shape: tuple[int, ...], input_dtype: torch.dtype) -> int:
    """Measure what the kernels of a thread take for a model, beyond what a warm-up takes."""
    twin = copy.deepcopy(model).train()
    images = torch.zeros(_SCRATCH_IMAGES, *input_shape, dtype=input_dtype)
    with torch_threads(1):
        taken = scratch_of(lambda: twin(images).sum().backward())
        return max(0, taken - _warmed_up())


@cache
def _warmed_up() -> int:
    return scratch_of(warm_up)
