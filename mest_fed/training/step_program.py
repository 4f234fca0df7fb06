"""The program of a training step: a model, a learning task and an optimizer as operators."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from mest_fed.catalogue import FORMATS, OPTIMIZERS, TASKS
from mest_fed.errors import InputError, not_allowed
from mest_fed.nn import optimizers
from mest_fed.nn.capture import Captured, capture
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.passes.fusion import with_fused_sums
from mest_fed.runtime.passes.groups import with_groups
from mest_fed.runtime.passes.planes import with_planes
from mest_fed.runtime.passes.pooling import with_pooling
from mest_fed.runtime.passes.recompute import with_recomputed_norms
from mest_fed.runtime.passes.storage import obstacles, with_bf16_storage
from mest_fed.runtime.passes.updates import with_direct_updates
from mest_fed.runtime.program import Program
from mest_fed.runtime.updates import SGD, Adam, Limits, with_updates
from mest_fed.training.objective import Objective
from mest_fed.training.tasks import Classification, MultiLabel, NextToken, Regression


def _next_token(task: NextToken) -> str:
    if task.ignore >= 0:  # a program leaves out targets that are negative
        raise not_allowed("task.options.ignore", task.ignore, "in a program: a negative number")
    return "cross_entropy"


#: Loss of a regression -> its operator.
_ERRORS = {"mse": "squared_error", "mae": "absolute_error", "huber": "huber"}
#: Task -> the operator of its loss.
_LOSSES: Mapping[type, Callable[[Any], str]] = {
    Classification: lambda _: "cross_entropy",
    NextToken: _next_token,
    Regression: lambda task: _ERRORS[task.loss],
    MultiLabel: lambda _: "binary_cross_entropy",
}


def _adam(settings: OptimizerSettings, *, decoupled: bool) -> Adam:
    return Adam(
        settings.beta1, settings.beta2, settings.eps, settings.weight_decay, decoupled=decoupled
    )


#: Name -> pass of a whole step, in the order in which programs go through them: first those that
#: look for chains of operators, of which later ones would hide some; layouts at last, when it is
#: known which operators there are.
PASSES: Mapping[str, Callable[[Program], Program]] = {
    "pooling": with_pooling,
    "updates": with_direct_updates,
    "fusion": with_fused_sums,
    "recompute": with_recomputed_norms,
    "groups": with_groups,
    "planes": with_planes,
}

#: What planes are stored as between operators -> its pass.
STORAGE: Mapping[str, Callable[[Program], Program]] = {
    "fp32": lambda program: program,
    "bf16": with_bf16_storage,
}

#: A client's optimizer -> that of programs.
_OPTIMIZERS: Mapping[type, Callable[[OptimizerSettings], SGD | Adam]] = {
    optimizers.SGD: lambda it: SGD(it.momentum, it.weight_decay),
    optimizers.Adam: lambda it: _adam(it, decoupled=False),
    optimizers.AdamW: lambda it: _adam(it, decoupled=True),
}


class StepPrograms:
    """The programs of one training step, for groups of any size.

    Parameters
    ----------
    model : nn.Module
        What trains: its parameters that require a gradient. Only its shapes are read.
    example : tuple
        Shape, without the batch, and type of the inputs.
    objective : Objective
        The learning task.
    settings : OptimizerSettings
        The optimizer; the learning rate is a setting of the program.
    groups : bool
        Whether a batch may be several groups, where the model allows it. If not, gradients are
        written once instead of added up.
    passes : collection of str
        Those of :data:`PASSES` that programs go through; ``updates`` only if a batch is one group,
        since weights of linear layers then have no gradient that could be read after a step, and
        ``groups`` only if it may be several.
    storage : str
        A name of :data:`STORAGE`. Planes alone are stored otherwise: without the pass that chooses
        them programs are the same, as :func:`check_stored` says.

    Raises
    ------
    InputError
        If the task or the optimizer has no operator, or the storage no pass: one line.
    """

    def __init__(
        self,
        model: nn.Module,
        example: tuple[tuple[int, ...], torch.dtype],
        objective: Objective,
        settings: OptimizerSettings,
        *,
        groups: bool = True,
        passes: Collection[str] = tuple(PASSES),
        storage: str = "fp32",
    ) -> None:
        if storage not in STORAGE:
            raise not_allowed("storage", storage, STORAGE)
        self.storage, self._stored = storage, STORAGE[storage]
        loss = _LOSSES.get(type(objective))
        if loss is None:
            allowed = ", ".join(it.__name__ for it in _LOSSES)
            raise not_allowed(TASKS.key, type(objective).__name__, f"in a program: {allowed}")
        make = _OPTIMIZERS.get(settings.kind)
        if make is None:
            allowed = ", ".join(it.__name__.lower() for it in _OPTIMIZERS)
            raise not_allowed(OPTIMIZERS.key, settings.name, f"in a program: {allowed}")
        self._loss = loss(objective)
        self._limits = Limits(settings.clip_norm, settings.proximal)
        self.model, self._update = model, make(settings)
        without = "updates" if groups else "groups"
        self._passes = [it for it in PASSES if it in passes and it != without]
        self._shape, self._dtype = example[0], str(example[1]).removeprefix("torch.")

    def captured(self, examples: int) -> Captured:
        """Return the forward program of so many examples.

        Raises
        ------
        InputError
            If a step of the model has no operator: one line.
        """
        return capture(self.model, (examples, *self._shape), self._dtype)

    def __call__(self, examples: int) -> Program:
        """Return the program of so many examples: forward, backward and update."""
        return self.of(self.captured(examples))

    def of(self, captured: Captured) -> Program:
        """Return the step of a forward program."""
        forward = with_loss(captured.program, captured.output, self._loss)
        gradients = with_gradients(forward, captured.trained)
        program = with_updates(gradients, self._update, self._limits)
        del forward, gradients  # the passes make more
        for name in self._passes:
            program = PASSES[name](program)
        return self._stored(program).checked()


def check_stored(program: Program, storage: str) -> None:
    """Check that a step stores something as it is asked to.

    Raises
    ------
    InputError
        If nothing of it can be stored so: one line that names the operators in the way.
    """
    if storage != "fp32" and all(it.dtype != "bfloat16" for it in program.buffers):
        named = ", ".join(obstacles(program)) or "it has no planes of convolutions"
        raise InputError(
            f"{FORMATS.key} = {storage!r}: a program of this model keeps all as fp32 ({named})"
        )


def step_program(
    model: nn.Module,
    inputs: tuple[tuple[int, ...], torch.dtype],
    objective: Objective,
    settings: OptimizerSettings,
    passes: Collection[str] = tuple(PASSES),
) -> tuple[Program, Captured]:
    """Make the program of one training step; see :class:`StepPrograms`.

    Parameters
    ----------
    model, objective, settings, passes
        As there.
    inputs : tuple
        Shape, the examples of a group first, and type of the inputs.

    Returns
    -------
    program : Program
        Forward, backward and update.
    captured : Captured
        The forward program, with the tensors that its parameters and states stand for.
    """
    (examples, *shape), dtype = inputs
    programs = StepPrograms(model, (tuple(shape), dtype), objective, settings, passes=passes)
    captured = programs.captured(examples)
    return programs.of(captured), captured
