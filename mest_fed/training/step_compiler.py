"""The programs of steps as the planner asks for them: many shapes, of which few are made.

A program of another micro-batch, or of another density, has the same operators over buffers of
other sizes. It is made where no two that were made before say what it is (``runtime/sizes.py``).
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import nn

from mest_fed.errors import InputError
from mest_fed.memory import TrainingShape, memory_saving
from mest_fed.memory.program_bytes import PlannedStep
from mest_fed.nn.capture import Captured
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime import native_table
from mest_fed.runtime.program import Program
from mest_fed.runtime.sizes import interpolated, resized
from mest_fed.training.objective import Objective
from mest_fed.training.places import check_alone
from mest_fed.training.program_choice import best_programs, can_compile, program_of
from mest_fed.training.step_program import StepPrograms
from mest_fed.training.tracing import check_plain

#: Models and ways to train them whose programs are kept: those of a plan and its runners-up.
MOST_KEPT = 16


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

    Attributes
    ----------
    made : int
        Programs that were made; all others followed from them.
    """

    def __init__(
        self,
        example: tuple[tuple[int, ...], torch.dtype],
        objective: Objective,
        settings: OptimizerSettings,
    ) -> None:
        self._example, self._objective, self._settings = example, objective, settings
        self._kept: OrderedDict[Hashable, _PlannedPrograms] = OrderedDict()
        self.made = 0

    def __call__(
        self, model: nn.Module, shape: TrainingShape, *, reads: bool = False
    ) -> PlannedStep | None:
        """Return the step of a meta model; None where torch would train.

        Programs of a model are kept: it must not change.
        """
        if not (can_compile(shape.memory) and native_table.available()):
            return None
        model.train()
        try:
            with memory_saving(model, shape.memory):
                return self._planned(model, shape, reads=reads)
        except InputError:
            return None

    def _planned(self, model: nn.Module, shape: TrainingShape, *, reads: bool) -> PlannedStep:
        check_plain(model, training=True)
        whole = shape.batch <= shape.micro_batch and not reads
        make = partial(self._programs, model, shape)
        programs = best_programs(make, shape.micro_batch, whole=whole)
        assert isinstance(programs, _PlannedPrograms)
        first = programs(shape.micro_batch)
        captured = programs.any_captured(shape.micro_batch)
        check_alone(captured)
        program, _ = program_of(programs, first, shape.micro_batch)
        copies = frozenset(captured.computed)
        return PlannedStep(program, frozenset(captured.tensors) - copies, copies)

    def _programs(self, model: nn.Module, shape: TrainingShape, **how: Any) -> "_PlannedPrograms":
        """Return the programs of a model that trains in some way, as they were left."""
        settings = self._settings
        if settings.has_momentum and not shape.momentum:
            settings = settings.without_momentum()
        memory = shape.memory
        way = (
            settings, memory.saved, memory.frozen, memory.segments, _dense_shapes(model),
            *sorted(how.items()),
        )  # fmt: skip
        key = (id(model), *way)  # which is the model's as long as the programs are kept
        if key not in self._kept:
            self._kept[key] = _PlannedPrograms(
                self, way, model, self._example, self._objective, settings,
                storage=memory.saved, **how,
            )  # fmt: skip
        self._kept.move_to_end(key)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def alike(self, way: Hashable) -> "Iterator[_PlannedPrograms]":
        """Yield the programs of models that train in one way."""
        return (it for it in self._kept.values() if it.way == way)


def _dense_shapes(model: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Return the shapes beside the sparse values: those of models that differ in density alone."""
    layers = (it for it in model.modules() if isinstance(it, SparseLayer))
    sparse = {id(layer.values) for layer in layers}
    return tuple(tuple(it.shape) for it in model.parameters() if id(it) not in sparse)


class _PlannedPrograms(StepPrograms):
    """The programs of one model, some of which follow from others: its own, or another's."""

    def __init__(self, compiler: StepCompiler, way: Hashable, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.way, self._compiler = way, compiler
        self.found: dict[int, Program] = {}
        self.forward: dict[int, Captured] = {}
        #: Names of the parameters that have gradients, in the first program and so in all.
        self.trained: list[str] = []

    def captured(self, examples: int) -> Captured:
        """Return the forward program of so many examples."""
        if examples not in self.forward:
            self.forward[examples] = super().captured(examples)
        return self.forward[examples]

    def __call__(self, examples: int) -> Program:
        """Return the program of so many examples: as two others say it is, or made."""
        if examples not in self.found:
            found = self._between(examples) or self._among_others(examples)
            self.found[examples] = found or self._make(examples)
        return self.found[examples]

    def any_captured(self, examples: int) -> Captured:
        """Return a forward program, of so many examples if there is none."""
        return next(iter(self.forward.values()), None) or self.captured(examples)

    def _make(self, examples: int) -> Program:
        captured = self.captured(examples)
        self.trained = self.trained or captured.trained
        self._compiler.made += 1
        return self.of(captured)

    def _between(self, examples: int) -> Program | None:
        """Return the program as those of fewer and of more examples have it."""
        fewer = [it for it in self.found if it < examples]
        more = [it for it in self.found if it > examples]
        if not (fewer and more):
            return None
        return resized(self.found[min(fewer)], self.found[max(more)], examples)

    def _among_others(self, examples: int) -> Program | None:
        """Return the program as those of a lower and a higher density have it."""
        others = [it for it in self._compiler.alike(self.way) if examples in it.found]
        if len(others) < 2:
            return None
        self.trained = self.trained or self.any_captured(examples).trained
        alike = [it for it in others if it.trained == self.trained]
        for one, two in combinations(alike, 2):
            # Which lengths a density decides does not depend on the examples.
            sizes = [it for it in one.forward if it in two.forward] or [examples]
            size = next((it for it in sizes if it in self.forward), sizes[0])
            forward = [it.captured(size).program for it in (one, two, self)]
            steps = one.found[examples], two.found[examples]
            found = interpolated(*steps, (forward[0], forward[1], forward[2]))
            if found is not None:
                return found
        return None
