"""The bytes of one training step, part by part, measured by running the step on a meta model."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.catalogue import OPTIMIZERS
from mest_fed.described import one_line
from mest_fed.errors import MestFedError, not_allowed
from mest_fed.memory.activations import MemoryOptions, memory_saving
from mest_fed.memory.activations.micro_chunks import only_the_ends
from mest_fed.memory.live_bytes import WORK, Bytes, FusedAttention, LiveBytes, OperatorOverhead
from mest_fed.memory.trace import CROSS_ENTROPY, TrainingLoss
from mest_fed.memory.warm_up import warm_up
from mest_fed.nn import SparseLayer
from mest_fed.nn.client_optimizer import ClientOptimizer
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.nn.optimizers import WHERE_RELEASED
from mest_fed.sparsity import parse_distribution
from mest_fed.system.peak_meter import measure


@dataclass(frozen=True)
class TrainingShape:
    """How a device trains, as far as memory is concerned.

    Parameters
    ----------
    density : float
        Target density of the sparse layers (ignored for a dense model).
    distribution : str
        How density spreads over layers; see :func:`mest_fed.sparsity.parse_distribution`.
    micro_batch : int
        Images in one forward and backward pass.
    batch : int
        Images in one optimizer step.
    momentum : bool
        Whether the optimizer keeps a momentum (for Adam the first moment).
    memory : MemoryOptions
        What is recomputed, packed, consumed and frozen.
    optimizer : str
        Name of the client's optimizer.
    proximal : bool
        Whether FedProx's term keeps the parameters from which it measures.

    Raises
    ------
    InputError
        If a number is out of range, the micro-batch larger than the batch, or the distribution
        or optimizer unknown.
    """

    density: float
    distribution: str
    micro_batch: int
    batch: int
    momentum: bool = True
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    optimizer: str = "sgd"
    proximal: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise not_allowed("density", self.density, "a number in (0, 1]")
        parse_distribution(self.distribution)
        if self.batch < 1:
            raise not_allowed("batch", self.batch, "a whole number of at least 1")
        if not 1 <= self.micro_batch <= self.batch:
            raise not_allowed("micro_batch", self.micro_batch, f"1 to {self.batch} (the batch)")
        OPTIMIZERS.check(self.optimizer)
        if self.memory.release_gradients and not self.can_release:
            raise not_allowed("release_gradients", True, WHERE_RELEASED)

    @property
    def can_release(self) -> bool:
        """Whether the optimizer can do with released gradients."""
        return OptimizerSettings(name=self.optimizer).can_release

    def build_optimizer(self, model: nn.Module, learning_rate: float = 0.1) -> ClientOptimizer:
        """Return an optimizer that keeps, for a model, what the shape's optimizer does."""
        settings = OptimizerSettings(
            learning_rate, name=self.optimizer, proximal=1.0 if self.proximal else 0.0
        )
        if not self.momentum:
            settings = settings.without_momentum()
        return settings.build(model, release_gradients=self.memory.release_gradients)


#: What stays in the workspace from one step to the next.
_BUFFERS = "buffers"


class UntraceableError(MestFedError):
    """A layer does something that cannot be done without numbers; the text names it."""


@dataclass(frozen=True)
class StepOptions:
    """What a step does beside its shape.

    Parameters
    ----------
    input_shape : tuple of int
        Of one input.
    threads : int
        Of the kernels.
    loss : TrainingLoss
        What the step minimises.
    keep_gradients : bool
        Whether the step's gradients stay although they are consumed: a mutation reads them.
    dense_gradients : bool
        Whether the sparse layers keep a dense gradient too (RigL).
    input_dtype : torch.dtype
        Of the inputs.
    forward_only : bool
        Whether there is no backward.
    """

    input_shape: tuple[int, ...]
    threads: int = 1
    loss: TrainingLoss = CROSS_ENTROPY
    keep_gradients: bool = False
    dense_gradients: bool = False
    input_dtype: torch.dtype = torch.float32
    forward_only: bool = False


def step_bytes(model: nn.Module, shape: TrainingShape, options: StepOptions) -> Bytes:
    """Count the bytes of a training step at its peak, as if the run were well under way.

    Parameters
    ----------
    model : nn.Module
        A meta model at its peak of active weights; it is used up.
    shape : TrainingShape
        What is trained, and how.
    options : StepOptions
        The rest.

    Returns
    -------
    Counter
        Bytes by kind: values, index, gradients, optimizer, activations, workspace, batch.

    Raises
    ------
    UntraceableError
        If a layer needs numbers.
    """
    _refuse_recurrent(model)
    model.train()
    images = torch.empty(
        shape.batch, *options.input_shape, dtype=options.input_dtype, device="meta"
    )
    targets = options.loss.targets(shape.batch, "meta")
    live = LiveBytes(OperatorOverhead(options.threads))
    with (
        FusedAttention(),
        live,
        only_the_ends(),
        memory_saving(model, shape.memory) as forward,
        _naming(model),
    ):
        live.mark((*model.parameters(), *model.buffers()), "values")
        live.mark(_slots(model), "index")
        live.mark((images, targets), "batch")
        optimizer = shape.build_optimizer(model)
        live.mark(optimizer.make_state(), "optimizer")
        optimizer.keep_gradients = options.keep_gradients
        _keep_dense_gradients(model, options.dense_gradients)
        part = images[: shape.micro_batch], targets[: shape.micro_batch]
        for last in (False, True):  # the first pass brings in what then stays
            if shape.micro_batch == shape.batch:
                optimizer.zero_grad()  # each pass is a step
            if options.forward_only:
                with torch.no_grad():
                    options.loss.total(forward(part[0]), part[1])
            else:
                _pass(forward, part, live, options.loss)
            live.mark(_gradients(model), "gradients")
            if not last:
                live.mark_rest(_BUFFERS)
                live.begin()
        optimizer.close()
    peak = live.peak
    peak[WORK] += peak.pop(_BUFFERS, 0)
    return peak


def _refuse_recurrent(model: nn.Module) -> None:
    """Refuse what computes otherwise on a CPU than on the meta device."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            raise UntraceableError(
                f"{name} ({type(module).__name__}) cannot be traced without numbers: on a CPU it "
                "runs one operator of oneDNN's, whose memory no trace shows"
            )


def _pass(forward: Any, part: tuple[Tensor, Tensor], live: LiveBytes, step: TrainingLoss) -> None:
    images, targets = part
    loss = step.total(forward(images), targets)
    live.mark_rest("activations")
    loss.backward()  # type: ignore[no-untyped-call]


def _slots(model: nn.Module) -> Iterator[Tensor]:
    return (m.slots for m in model.modules() if isinstance(m, SparseLayer))


def _gradients(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, SparseLayer) and module.dense_gradient is not None:
            yield module.dense_gradient
    yield from (p.grad for p in model.parameters() if p.grad is not None)


def _keep_dense_gradients(model: nn.Module, keep: bool) -> None:
    for module in model.modules():
        if isinstance(module, SparseLayer):
            module.keep_dense_gradient = keep


@contextmanager
def _naming(model: nn.Module) -> Iterator[None]:
    """Turn what a layer raises for want of numbers into an error that names the layer.

    Hooks on the modules would change what is computed: a segment with hooks is run whole.
    """
    names = {module: name or type(model).__name__ for name, module in model.named_modules()}
    try:
        yield
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        running = (
            frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)
        )
        within = [module for module in running if isinstance(module, nn.Module)]
        culprit = next((module for module in reversed(within) if module in names), model)
        what = f"{names[culprit]} ({type(culprit).__name__})"
        text = f"{what} cannot be traced without numbers: {one_line(error)}"
        raise UntraceableError(text) from error


def measured_step(
    meta_model: nn.Module,
    input_shape: tuple[int, ...],
    shape: TrainingShape,
    input_dtype: torch.dtype = torch.float32,
    loss: TrainingLoss = CROSS_ENTROPY,
) -> int:
    """Measure what two training steps add to a process, model included.

    Parameters
    ----------
    meta_model : nn.Module
        On the meta device, at its peak of active weights; stays as it is.
    input_shape : tuple of int
        Of one input.
    shape : TrainingShape
        What is trained, and how.
    input_dtype : torch.dtype
        Of the inputs.
    loss : TrainingLoss
        What the step minimises.

    Returns
    -------
    int
        Bytes; measured. Exact to some hundred kilobytes in a process with one thread and an
        allocator that gives memory back (:data:`mest_fed.system.allocator.ALLOCATOR_ENVIRONMENT`).
        Gradients that a mutation keeps (RigL's dense ones too) are not part of it.

    Raises
    ------
    MestFedError
        If the child fails.
    """
    inputs = torch.empty(shape.batch, *input_shape, dtype=input_dtype, device="meta")
    return measure(partial(_train, meta_model, inputs, shape, loss), _warm_up).added


def _warm_up() -> None:
    torch.set_num_threads(1)  # a forked child has none of its parent's other threads
    warm_up()


def _train(meta_model: nn.Module, inputs: Tensor, shape: TrainingShape, loss: TrainingLoss) -> None:
    model = _real(meta_model).train()
    images = torch.zeros(inputs.shape, dtype=inputs.dtype)
    targets = loss.targets(shape.batch, "cpu")
    optimizer = shape.build_optimizer(model, learning_rate=0.0)
    with memory_saving(model, shape.memory) as forward:
        for _ in range(2):
            optimizer.zero_grad()
            for first in range(0, shape.batch, shape.micro_batch):
                part = slice(first, first + shape.micro_batch)
                total = loss.total(forward(images[part]), targets[part])
                total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _real(meta_model: nn.Module) -> nn.Module:
    """Give a meta model memory, in place of what the child has of it; numbers are zero."""
    for module in meta_model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            real = torch.zeros(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(real, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
        if isinstance(module, SparseLayer):
            active = torch.arange(len(module.slots), dtype=torch.int32)
            module.slots = active * module.layout.variants
    return meta_model
