"""A model's compiled programs: made when they are asked for, and kept while there is room."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.data import Batch
from mest_fed.errors import InputError
from mest_fed.nn.capture import Captured
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime import native_table
from mest_fed.training.forward_programs import EVALUATION_GROUP, ModelForward, forward_sizes
from mest_fed.training.model_step import ModelStep
from mest_fed.training.objective import Objective
from mest_fed.training.places import capacities, places_of, with_room
from mest_fed.training.program_choice import best_programs
from mest_fed.training.step_program import StepPrograms, check_stored
from mest_fed.training.tracing import check_plain, refusing_changes

#: Programs of one model that are kept, and the bytes that they may hold beside the model; the last
#: one is kept in any case.
MOST_PROGRAMS, MOST_BYTES = 16, 2**28


class _RoomyPrograms(StepPrograms):
    """The programs of a training step, with room for more active granules."""

    def __init__(self, *args: Any, room: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._room = room

    def captured(self, examples: int) -> Captured:
        """Return the forward program of so many examples."""
        found = super().captured(examples)
        return with_room(found, self.model, capacities(self.model, self._room))


def _structure(model: nn.Module, room: float = 0.0) -> tuple[object, ...]:
    """Return what of a model a program depends on, beside the classes of its modules."""
    granules = capacities(model, room)
    roomy = {f"{name}.values".lstrip("."): it for name, it in granules.items()}
    return tuple(
        (name, roomy.get(name, 0), tuple(it.shape[1 if name in roomy else 0 :]), it.requires_grad)
        for name, it in model.named_parameters()
    )


def check_step(
    model: nn.Module,
    inputs: tuple[tuple[int, ...], torch.dtype],
    objective: Objective,
    settings: OptimizerSettings,
    storage: str = "fp32",
) -> None:
    """Check that a model has a compiled training step; it is in training mode afterwards.

    Parameters
    ----------
    model, inputs, objective, settings
        As of :func:`step_program`.
    storage : str
        As of :class:`StepPrograms`.

    Raises
    ------
    InputError
        If it has none: one line that says why.
    """
    native_table.module()
    model.train()
    check_plain(model, training=True)
    (examples, *shape), dtype = inputs
    with refusing_changes(model):
        programs = StepPrograms(model, (tuple(shape), dtype), objective, settings, storage=storage)
        captured = programs.captured(examples)
        check_stored(programs.of(captured), storage)
        places_of(model, captured)


class Programs:
    """The compiled programs of one model: those that were used last.

    Parameters
    ----------
    model : nn.Module
        The only one that they are asked for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        #: Bytes that they may hold beside the model; see :meth:`keep_within`.
        self.most_bytes = MOST_BYTES
        self._kept: OrderedDict[object, Any] = OrderedDict()

    def keep_within(self, most_bytes: int) -> None:
        """Hold no more bytes beside the model from now on; with 0 only what is in use."""
        self.most_bytes = most_bytes
        self.let_go()

    def let_go(self) -> None:
        """Forget programs, the oldest first, until what they hold is allowed."""
        while self._kept and (len(self._kept) > MOST_PROGRAMS or self.bytes > self.most_bytes):
            self._kept.popitem(last=False)

    def release_memory(self) -> None:
        """After a round: where only what is in use may be held, hold no memory beside the model."""
        if self.most_bytes == 0:
            for kept in self._kept.values():
                if isinstance(kept, ModelStep):
                    kept.release_memory()

    def step(
        self,
        objective: Objective,
        settings: OptimizerSettings,
        batch: Batch,
        micro_batch: int,
        *,
        room: float = 1.0,
        whole: bool = False,
        storage: str = "fp32",
    ) -> ModelStep | None:
        """Return the step of a model as it is, for batches of any size; None if it has none.

        Parameters
        ----------
        objective, settings
            As of :func:`step_program`.
        batch : Batch
            One of those.
        micro_batch : int
            Examples that go through the model together, at most.
        room : float
            Most active granules of a layer, as a multiple of its target: of fewer the step is the
            same.
        whole : bool
            Whether no batch is larger than ``micro_batch``.
        storage : str
            As of :class:`StepPrograms`; there is no step in which nothing is stored so.
        """
        example = batch.example
        how = objective, replace(settings, learning_rate=1.0), torch.get_num_threads()
        key = "step", example, micro_batch, whole, storage, how, _structure(self.model, room)

        def make() -> ModelStep:
            check_plain(self.model, training=True)
            of = partial(
                _RoomyPrograms,
                *(self.model, example, objective, settings),
                room=room,
                storage=storage,
            )
            return ModelStep(best_programs(of, micro_batch, whole=whole), micro_batch, how[-1])

        found: ModelStep | None = self._find(key, make)
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the model says in evaluation mode, by a program where it has one.

        Outputs are valid until the next call.
        """
        found = self.forward_pass(inputs)
        outputs: Tensor = self.model(inputs) if found is None else found(inputs)
        return outputs

    def forward_pass(self, inputs: Tensor, most: int = EVALUATION_GROUP) -> ModelForward | None:
        """Return the program of evaluation for inputs of any number; None where there is none.

        Parameters
        ----------
        inputs : Tensor
            Some of them.
        most : int
            Examples that go through the model together, at most; never more than in evaluation.
        """
        threads, example = torch.get_num_threads(), tuple(inputs.shape[1:])
        dtype, group = inputs.dtype, min(most, EVALUATION_GROUP)
        key = "forward", example, dtype, group, threads, _structure(self.model)

        def make() -> ModelForward:
            check_plain(self.model, training=False)
            first, sizes = forward_sizes(self.model, (example, dtype), group)
            return ModelForward(first, places_of(self.model, first), threads, sizes)

        found: ModelForward | None = self._find(key, make)
        return found

    def _find(self, key: object, make: Callable[[], Any]) -> Any:
        """Return what was made for a key, or make it; None where there can be none."""
        kept = self._kept
        if key not in kept:
            self.let_go()  # before more is taken
            try:
                with refusing_changes(self.model):
                    kept[key] = make() if native_table.available() else None
            except InputError:
                kept[key] = None
        kept.move_to_end(key)
        found = kept[key]
        self.let_go()
        kept[key] = found  # even if it is all that there may be
        return found

    @property
    def bytes(self) -> int:
        """Bytes that the programs hold beside the model."""
        return sum(it.bytes for it in self._kept.values() if it is not None)
