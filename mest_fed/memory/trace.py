"""A model as the footprint sees it: its state, and a meta model that can train without data."""

import copy
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.described import one_line
from mest_fed.kernels import torch_threads
from mest_fed.kernels.native import scratch_of
from mest_fed.memory.activations import segments_of
from mest_fed.memory.warm_up import warm_up
from mest_fed.nn import SparseLayer, model_spec
from mest_fed.sparsity.state import ModelSpec

#: Images of the pass that makes the kernels take their scratch memory.
_SCRATCH_IMAGES = 4

#: Meta models of some density that are kept: those of a plan and its runners-up.
_MOST_MODELS = 8


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
    input_dtype : torch.dtype
        Of the inputs: float32, or int64 for tokens.
    loss : TrainingLoss
        What training minimises.
    model : nn.Module, optional
        The model itself, for what only numbers tell; a plan of programs asks for none of it.
    at_width : callable, optional
        Gives the trace of the narrower model of a density, where density is a share of channels.
    known : dict
        Footprints that were worked out.
    """

    spec: ModelSpec
    meta_model: nn.Module
    input_shape: tuple[int, ...]
    dense_parameters: int
    buffers: int
    input_dtype: torch.dtype = torch.float32
    loss: TrainingLoss = CROSS_ENTROPY
    model: nn.Module | None = field(default=None, compare=False, repr=False)
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    at_width: Callable[[float], "ModelTrace"] | None = field(
        default=None, compare=False, repr=False
    )
    _models: OrderedDict[Any, nn.Module] = field(
        default_factory=OrderedDict, init=False, compare=False, repr=False
    )

    @property
    def image(self) -> int:
        """One input."""
        return self.input_dtype.itemsize * math.prod(self.input_shape)

    @cached_property
    def scratch(self) -> int:
        """Scratch memory that the kernels keep for each thread; measured with a small batch.

        It is what they take beyond the warm-up, which stands in the baseline.
        """
        if self.model is None or not self.spec.groups:
            return 0
        return _scratch(self.model, self.input_shape, self.input_dtype)

    @cached_property
    def traceable_loss(self) -> TrainingLoss:
        """The loss, or a stand-in for one that needs numbers: a softmax, as a warning says."""
        inputs = torch.empty(2, *self.input_shape, dtype=self.input_dtype, device="meta")
        return _traceable(self.loss, meta_model_of(self.meta_model), inputs)

    def largest_passage(self, segments: str) -> int:
        """Return the most bytes that enter and leave one of the segments, for an example.

        Both stand in memory when a segment returns, however it computes; 0 where it is not known.
        The model's own input is left out.

        Parameters
        ----------
        segments : str
            As ``MemoryOptions.segments``.
        """
        if self.model is None:
            return 0
        key = "passage", segments
        if key not in self.known:
            inputs = torch.zeros(2, *self.input_shape, dtype=self.input_dtype)
            self.known[key] = _largest_passage(self.model, segments, inputs)
        found: int = self.known[key]
        return found

    def of_density(self, density: float) -> "ModelTrace":
        """Return the trace of a density's model: this one, unless that is narrower."""
        return self if self.at_width is None else self.at_width(density)

    def at(self, active: Mapping[str, int]) -> nn.Module:
        """Return a meta model whose sparse layers have so many active granules, by layer.

        One for all who ask: it must stay as it is, and :func:`meta_model_of` copies it.
        """
        key = tuple(active.items())
        if key not in self._models:
            self._models[key] = self._with(active)
        self._models.move_to_end(key)
        if len(self._models) > _MOST_MODELS:
            self._models.popitem(last=False)
        return self._models[key]

    def _with(self, active: Mapping[str, int]) -> nn.Module:
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
        input_dtype=input_dtype,
        loss=loss,
        model=model,
    )


def meta_model_of(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device without copying its numbers."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        memo[id(parameter)] = nn.Parameter(shape, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
    for module in model.modules():
        if isinstance(module, SparseLayer):  # a layout does not change: to copy one takes longest
            memo[id(module.layout)] = module.layout
    return copy.deepcopy(model, memo)


def _largest_passage(model: nn.Module, segments: str, inputs: Tensor) -> int:
    """Run a few examples through a model, and look at what enters and leaves its segments."""
    found = [0]

    def look(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(made, Tensor):
            (x,) = given
            places = [it.untyped_storage().data_ptr() for it in (inputs, x, made)]
            if places[1] != places[2] and len(x) == len(made) == len(inputs):
                entered = 0 if places[0] == places[1] else x.nbytes  # the batch is counted apart
                found.append((entered + made.nbytes) // len(inputs))

    whole = [it.module for it in segments_of(model, segments) if it.method == "forward"]
    training = {module: module.training for module in model.modules()}
    handles = [module.register_forward_hook(look) for module in whole]
    try:
        with torch.no_grad(), torch_threads(1):
            model.eval()(inputs)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return 0
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return max(found)


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
