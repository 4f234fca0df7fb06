"""A compiled training step in the memory of a model and its optimizer.

Parameters, buffers and momenta are torch's tensors: a program is bound to them before it runs, so
whatever reads or changes the model between two steps (a mutation, an evaluation, an upload) needs
to know nothing of programs.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mest_fed.devices import Work, program_step_work
from mest_fed.nn.client_optimizer import (
    FIRST,
    MOMENTUM,
    REFERENCE,
    SECOND,
    STEP,
    ClientOptimizer,
)
from mest_fed.runtime.batches import LazyRows, even_parts
from mest_fed.runtime.program import Program
from mest_fed.runtime.step import CompiledStep
from mest_fed.system.allocator import release_pages
from mest_fed.training.places import Array, Copies, Place, places_of
from mest_fed.training.program_choice import program_of
from mest_fed.training.step_program import StepPrograms

#: State of a parameter in programs -> the name that it has in a client's optimizer.
_KEYS = {
    "momentum_buffer": MOMENTUM,
    "first": FIRST,
    "second": SECOND,
    "step": STEP,
    "reference": REFERENCE,
}


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
