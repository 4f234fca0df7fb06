"""The programs that training would run, for the planner, which reads their bytes."""

from functools import partial

import torch
from torch import nn

from mest_fed.errors import InputError
from mest_fed.memory import TrainingShape, memory_saving
from mest_fed.memory.program_bytes import PlannedStep
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime import native_table
from mest_fed.runtime.sizes import Sizes
from mest_fed.training.objective import Objective
from mest_fed.training.places import check_alone
from mest_fed.training.programs import best_programs, can_compile, group_of
from mest_fed.training.step_program import StepPrograms
from mest_fed.training.tracing import check_plain


class StepCompiler:
    """Gives the program of a step from a meta model and how it trains.

    Parameters
    ----------
    example : tuple
        Shape and type of an input.
    objective : Objective
        The learning task.
    settings : OptimizerSettings
        The optimizer; whether it keeps a momentum is the shape's to say.
    """

    def __init__(
        self,
        example: tuple[tuple[int, ...], torch.dtype],
        objective: Objective,
        settings: OptimizerSettings,
    ) -> None:
        self._example, self._objective, self._settings = example, objective, settings

    def __call__(self, model: nn.Module, shape: TrainingShape) -> PlannedStep | None:
        """Return the step of a meta model; None where torch would train."""
        if not (can_compile(shape.memory) and native_table.available()):
            return None
        model.train()
        try:
            with memory_saving(model, shape.memory):
                return self._planned(model, shape)
        except InputError:
            return None

    def _planned(self, model: nn.Module, shape: TrainingShape) -> PlannedStep:
        check_plain(model, training=True)
        settings = self._settings
        if settings.has_momentum and not shape.momentum:
            settings = settings.without_momentum()
        make = partial(StepPrograms, model, self._example, self._objective, settings)
        whole = shape.batch <= shape.micro_batch
        programs = best_programs(make, shape.micro_batch, whole=whole)
        captured = programs.captured(shape.micro_batch)
        check_alone(captured)
        sizes = Sizes(programs, programs.of(captured))
        program = sizes(group_of(sizes, shape.micro_batch))
        copies = frozenset(captured.computed)
        return PlannedStep(program, frozenset(captured.tensors) - copies, copies)
