"""The bytes of one training step, part by part, found by taking the step on a skeleton."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mest_fed.errors import MestFedError
from mest_fed.memory.activations import saving
from mest_fed.memory.activations.pieces import only_the_ends
from mest_fed.memory.hidden import Hidden
from mest_fed.memory.live_bytes import WORK, Bytes, LiveBytes
from mest_fed.memory.shape import TrainingShape
from mest_fed.nn import SparseLayer
from mest_fed.nn.sgd import MOMENTUM, SGD

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
        Of an image.
    threads : int
        Of the kernels.
    keep_gradients : bool
        Whether the step's gradients stay although they are consumed: a mutation reads them.
    dense_gradients : bool
        Whether the sparse layers keep a dense gradient too (RigL).
    """

    input_shape: tuple[int, ...]
    threads: int = 1
    keep_gradients: bool = False
    dense_gradients: bool = False


def step_bytes(model: nn.Module, shape: TrainingShape, options: StepOptions) -> Bytes:
    """Count the bytes of a training step at its peak, as if the run were well under way.

    Parameters
    ----------
    model : nn.Module
        A skeleton at its peak of live weights; it is used up.
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
    model.train()
    images = torch.empty(shape.batch, *options.input_shape, device="meta")
    labels = torch.empty(shape.batch, dtype=torch.int64, device="meta")
    live = LiveBytes(Hidden(options.threads))
    with live, only_the_ends(), saving(model, shape.savings) as forward, _naming(model):
        live.mark((*model.parameters(), *model.buffers()), "values")
        live.mark(_slots(model), "index")
        live.mark((images, labels), "batch")
        optimizer = _optimizer(model, shape)
        live.mark((state[MOMENTUM] for state in optimizer.state.values()), "optimizer")
        optimizer.keep_gradients = options.keep_gradients
        _keep_dense_gradients(model, options.dense_gradients)
        part = images[: shape.micro_batch], labels[: shape.micro_batch]
        for last in (False, True):  # the first pass brings in what then stays
            if shape.micro_batch == shape.batch:
                optimizer.zero_grad()  # each pass is a step
            _pass(forward, part, live)
            live.mark(_gradients(model), "gradients")
            if not last:
                live.mark_rest(_BUFFERS)
                live.begin()
        optimizer.close()
    peak = live.peak
    peak[WORK] += peak.pop(_BUFFERS, 0)
    return peak


def _pass(forward: Any, part: tuple[Tensor, Tensor], live: LiveBytes) -> None:
    images, labels = part
    loss = cross_entropy(forward(images), labels, reduction="sum")
    live.mark_rest("activations")
    loss.backward()  # type: ignore[no-untyped-call]


def _optimizer(model: nn.Module, shape: TrainingShape) -> SGD:
    momentum = 0.9 if shape.momentum else 0.0
    consume = shape.savings.consume
    optimizer = SGD(model.parameters(), 0.1, momentum=momentum, weight_decay=1e-4, consume=consume)
    if shape.momentum:
        for parameter in optimizer.parameters:
            optimizer.state[parameter][MOMENTUM] = torch.empty(parameter.shape, device="meta")
    return optimizer


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
        raise UntraceableError(
            f"{names[culprit]} ({type(culprit).__name__}) cannot be traced without numbers: "
            f"{str(error).splitlines()[0]}"
        ) from error
