"""The program of a training step: a model, a learning task and an optimizer as operators."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from mest_fed.catalogue import OPTIMIZERS, TASKS
from mest_fed.errors import InputError, not_allowed
from mest_fed.nn import optimizers
from mest_fed.nn.capture import Captured, capture
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.program import Program
from mest_fed.runtime.updates import SGD, Adam, with_updates
from mest_fed.training.objective import Objective
from mest_fed.training.tasks import Classification, NextToken

#: Tasks whose loss is the mean cross-entropy over all targets.
_CROSS_ENTROPY = (Classification, NextToken)


def _adam(settings: OptimizerSettings, *, decoupled: bool) -> Adam:
    return Adam(
        settings.beta1, settings.beta2, settings.eps, settings.weight_decay, decoupled=decoupled
    )


#: A client's optimizer -> that of programs.
_OPTIMIZERS: Mapping[type, Callable[[OptimizerSettings], SGD | Adam]] = {
    optimizers.SGD: lambda it: SGD(it.momentum, it.weight_decay),
    optimizers.Adam: lambda it: _adam(it, decoupled=False),
    optimizers.AdamW: lambda it: _adam(it, decoupled=True),
}


def step_program(
    model: nn.Module,
    inputs: tuple[tuple[int, ...], torch.dtype],
    objective: Objective,
    settings: OptimizerSettings,
) -> tuple[Program, Captured]:
    """Make the program of one training step.

    Parameters
    ----------
    model : nn.Module
        What trains: its parameters that require a gradient.
    inputs : tuple
        Shape, the batch first, and type of the inputs.
    objective : Objective
        The learning task.
    settings : OptimizerSettings
        The optimizer; the learning rate is an input of the program.

    Returns
    -------
    program : Program
        Forward, backward and update.
    captured : Captured
        The forward program, with the tensors that its parameters and states stand for.

    Raises
    ------
    InputError
        If the task, the optimizer or a step of the model has no operator: one line.
    """
    if type(objective) not in _CROSS_ENTROPY:
        allowed = ", ".join(it.__name__ for it in _CROSS_ENTROPY)
        raise not_allowed(TASKS.key, type(objective).__name__, f"in a program: {allowed}")
    make = _OPTIMIZERS.get(settings.kind)
    if make is None:
        allowed = ", ".join(it.__name__.lower() for it in _OPTIMIZERS)
        raise not_allowed(OPTIMIZERS.key, settings.name, f"in a program: {allowed}")
    for key in ("clip_norm", "proximal"):
        if value := getattr(settings, key):
            raise InputError(f"training.{key} = {value} is not allowed in a program; allowed: 0")
    shape, dtype = inputs
    captured = capture(model, shape, str(dtype).removeprefix("torch."))
    gradients = with_gradients(with_loss(captured.program, captured.output), captured.trained)
    return with_updates(gradients, make(settings)), captured
