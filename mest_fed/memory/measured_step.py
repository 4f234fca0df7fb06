"""A training step measured in a child process, for models that cannot be traced without numbers."""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mest_fed.memory.activations import saving
from mest_fed.memory.meter import measure
from mest_fed.memory.rehearsal import rehearse
from mest_fed.memory.shape import TrainingShape
from mest_fed.nn import SparseLayer
from mest_fed.nn.sgd import SGD


def measured_step(skeleton: nn.Module, input_shape: tuple[int, ...], shape: TrainingShape) -> int:
    """Measure what two training steps add to a process, model included.

    Parameters
    ----------
    skeleton : nn.Module
        On the meta device, at its peak of live weights; stays as it is.
    input_shape : tuple of int
        Of an image.
    shape : TrainingShape
        What is trained, and how.

    Returns
    -------
    int
        Bytes; measured. Exact to some hundred kilobytes in a process with one thread and an
        allocator that gives memory back (:data:`mest_fed.memory.meter.ALLOCATOR_ENVIRONMENT`).
        Gradients that a mutation keeps (RigL's dense ones too) are not part of it.

    Raises
    ------
    MestFedError
        If the child fails.
    """
    return measure(partial(_train, skeleton, input_shape, shape), _rehearse).added


def _rehearse() -> None:
    torch.set_num_threads(1)  # a forked child has none of its parent's other threads
    rehearse()


def _train(skeleton: nn.Module, input_shape: tuple[int, ...], shape: TrainingShape) -> None:
    model = _real(skeleton).train()
    images = torch.zeros(shape.batch, *input_shape)
    labels = torch.zeros(shape.batch, dtype=torch.int64)
    momentum = 0.9 if shape.momentum else 0.0
    consume = shape.savings.consume
    optimizer = SGD(model.parameters(), 0.0, momentum=momentum, consume=consume)
    with saving(model, shape.savings) as forward:
        for _ in range(2):
            optimizer.zero_grad()
            for first in range(0, shape.batch, shape.micro_batch):
                part = slice(first, first + shape.micro_batch)
                loss = cross_entropy(forward(images[part]), labels[part], reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _real(skeleton: nn.Module) -> nn.Module:
    """Give a skeleton memory, in place of what the child has of it; numbers are zero."""
    for module in skeleton.modules():
        for name, parameter in module.named_parameters(recurse=False):
            real = torch.zeros(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(real, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
        if isinstance(module, SparseLayer):
            live = torch.arange(len(module.slots), dtype=torch.int32)
            module.slots = live * module.layout.variants
    return skeleton
