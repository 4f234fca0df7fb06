"""A model's compiled programs, which compute in the memory of the model and its optimizer.

Parameters, buffers and momenta are torch's tensors: a program is bound to them before it runs, so
whatever reads or changes the model between two steps (a mutation, an evaluation, an upload) needs
to know nothing of programs.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mest_fed.data import Batch
from mest_fed.devices import Work, program_step_work
from mest_fed.errors import InputError
from mest_fed.nn.capture import Captured
from mest_fed.nn.client_optimizer import FIRST, MOMENTUM, REFERENCE, SECOND, STEP, ClientOptimizer
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime import native_table
from mest_fed.runtime.batches import LazyRows, even_parts
from mest_fed.runtime.program import Program
from mest_fed.runtime.step import CompiledStep
from mest_fed.system.allocator import release_pages
from mest_fed.training.forward_programs import EVALUATION_GROUP, ModelForward, forward_sizes
from mest_fed.training.objective import Objective
from mest_fed.training.places import Array, Copies, Place, capacities, places_of, with_room
from mest_fed.training.program_choice import best_programs, program_of
from mest_fed.training.step_program import StepPrograms, check_stored
from mest_fed.training.tracing import check_plain, refusing_changes

#: Programs of one model that are kept, and the bytes that they may hold beside the model; the last
#: one is kept in any case.
MOST_PROGRAMS, MOST_BYTES = 16, 2**28

#: State of a parameter in programs -> the name that it has in a client's optimizer.
_KEYS = {
    "momentum_buffer": MOMENTUM,
    "first": FIRST,
    "second": SECOND,
    "step": STEP,
    "reference": REFERENCE,
}


class _RoomyPrograms(StepPrograms):
    """The programs of a training step, with room for more active granules."""

    def __init__(self, *args: Any, room: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._room = room

    def captured(self, examples: int) -> Captured:
        """Return the forward program of so many examples."""
        found = super().captured(examples)
        return with_room(found, self.model, capacities(self.model, self._room))


class ModelStep:
    """A compiled training step in the memory of a model and its optimizer.

    Parameters
    ----------
    programs : StepPrograms
        Of the model as it is; asked for other sizes only while it is so.
    micro_batch : int
        Most examples that go through the model together.
    threads : int
        To compute with.
    """

    def __init__(self, programs: StepPrograms, micro_batch: int, threads: int) -> None:
        captured = programs.captured(micro_batch)
        self.places = places_of(programs.model, captured)
        program, sizes = program_of(programs, programs.of(captured), micro_batch)
        rng = np.random.default_rng(0)  # who trains gives the generator of the round
        self.step = CompiledStep(
            program, threads, rng, sizes, micro_batch=micro_batch, batch=micro_batch
        )
        self._states = list(self._find_states())
        self._counters = _batch_counters(self.step.program, self.places)
        self._micro_batch = micro_batch
        self._work, self._active = program_step_work(program), 1.0
        self._values = [place for place in self.places if place.leaf == "values"]
        held = {place.buffer for place in self.places}
        #: Bytes beside the model's: arena, gradients, states of the optimizer.
        self.bytes = self.step.arena_bytes + sum(
            it.bytes
            for it in program.buffers
            if it.role in ("sum", "state") and it.name not in held
        )

    def _find_states(self) -> Iterator[tuple[str, tuple[int, ...], Place, str]]:
        """Yield each state of the optimizer: buffer, shape, its parameter, its key there."""
        program = self.step.program
        for place in self.places:
            for state, key in _KEYS.items():
                buffer = f"{place.buffer}:{state}"
                if buffer in program.numbers:
                    yield buffer, program.buffers[program.numbers[buffer]].shape, place, key

    def bind(self, optimizer: ClientOptimizer, copies: Copies) -> None:
        """Compute in the tensors that model and optimizer have at present.

        Parameters
        ----------
        optimizer : ClientOptimizer
            What its state lacks is made.
        copies : Copies
            Arrays that stand for tensors in which the program cannot compute.
        """
        room = sum(math.prod(place.shape) for place in self._values)
        active = sum(place.find().numel() for place in self._values)
        self._active = active / room if room else 1.0
        for place in self.places:
            self.step.bind(place.buffer, place.array(copies))
        for buffer, shape, place, key in self._states:
            parameter = place.find()
            optimizer.prepare(parameter)  # type: ignore[arg-type]
            held = optimizer.state[parameter].get(key)  # type: ignore[index]
            if held is None:  # a first moment that decays at once
                array: Array = np.zeros(shape, np.float32)
            else:  # torch counts steps by floats
                array = copies.of(held, shape, "int64" if key == STEP else "float32")
            self.step.bind(buffer, array)

    def release_memory(self) -> None:
        """Give back all memory but the model's; what the optimizer kept is lost."""
        self.step.release_memory()
        for buffer, *_ in self._states:
            release_pages(self.step.arrays[buffer])

    def work(self, examples: int) -> Work:
        """Return what a step of so many examples takes, of the granules that were bound.

        The program counts all those that it has room for.
        """
        work = self._work.of_batch(examples, self.step.program.examples)
        return replace(work, sparse_flops=work.sparse_flops * self._active)

    def train(
        self, inputs: Tensor | LazyRows, targets: Tensor, learning_rate: float
    ) -> tuple[float, Tensor]:
        """Take a step on a batch; return the mean loss, and the outputs until the next step."""
        given = inputs.numpy() if isinstance(inputs, Tensor) else inputs
        loss = self.step.step(given, targets.numpy(), learning_rate)
        parts = sum(1 for _ in even_parts(len(targets), self._micro_batch))
        for module in self._counters:
            module.num_batches_tracked.add_(parts)
        return loss, torch.from_numpy(self.step.outputs)

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients of all sparse values that train can be read after a step."""
        trained = (place for place in self._values if place.find().requires_grad)
        return all(place.buffer in self.step.gradients for place in trained)

    def give_gradients(self) -> None:
        """Let the values of sparse layers have the gradients of the last step, for a mutation.

        They stay until the next step. What is frozen has none.
        """
        for place in self._values:
            values = place.find()
            if not values.requires_grad:
                continue
            gradient = self.step.gradients[place.buffer].reshape(-1)[: values.numel()]
            values.grad = torch.from_numpy(gradient).view(values.shape)


def _batch_counters(program: Program, places: list[Place]) -> list[Any]:
    """Return the normalisations that count batches, once for each call in a step."""
    modules = {place.buffer: place.module for place in places if place.leaf == "running_mean"}
    calls = [it.arguments["running_mean"] for it in program.operators if it.name == "batch_norm"]
    called = (modules.get(program.buffers[it].name) for it in calls)
    return [it for it in called if getattr(it, "num_batches_tracked", None) is not None]


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
