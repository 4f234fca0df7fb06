"""One round on a node: receive, train by programs, mutate if due, send; and evaluation.

The same steps, draws and sums as a client with torch has (:mod:`mest_fed.client.local_round`), so
that both send the same bytes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.data.minibatches import Examples, Minibatches, Rows
from mest_fed.data.partitioners import hold_out
from mest_fed.devices.cost import StepWork, Work
from mest_fed.devices.program_work import program_step_work
from mest_fed.devices.round_costs import batch_work, round_work
from mest_fed.errors import NotFiniteError
from mest_fed.link.description import RunDescription
from mest_fed.link.messages import ProgramKind, ProgramRequest
from mest_fed.link.node.model import NodeModel
from mest_fed.link.node.programs import NodePrograms
from mest_fed.link.node.scores import Scores, scores_of
from mest_fed.rng import numpy_generator
from mest_fed.runtime.step import CompiledStep
from mest_fed.sparsity.state import SparseState
from mest_fed.training.forgetting import ForgettingState
from mest_fed.training.round_mutation import RoundMutation

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

#: Examples that an evaluation computes together.
EVALUATION_GROUP, EVALUATION_BATCH = 8, 512


@dataclass(frozen=True)
class Order:
    """What the server asks for.

    Parameters
    ----------
    round : int
        From 1.
    mutate : bool
        Whether the node mutates in this round.
    learning_rate, progress : float
        Of the round; progress of the run in [0, 1).
    """

    round: int
    mutate: bool
    learning_rate: float
    progress: float


@dataclass
class Totals:
    """Sums over presentations of examples.

    Parameters
    ----------
    loss : float
        Sum of the losses.
    examples : int
        Examples presented.
    count : float
        What they count in the mean loss.
    sums : dict
        Of the task, by name.
    """

    loss: float = 0.0
    examples: int = 0
    count: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, targets: Array, outputs: Array, scores: Scores) -> None:
        """Add a batch."""
        self.loss += loss
        self.examples += len(targets)
        self.count += scores.count(targets)
        for name, value in scores.sums(outputs, targets).items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class NodeRounds:
    """Trains and evaluates on a node's examples.

    Parameters
    ----------
    run : RunDescription
        The run.
    examples : Examples
        The node's own, those held out among them.
    programs : NodePrograms
        Gives compiled steps.
    """

    def __init__(self, run: RunDescription, examples: Examples, programs: NodePrograms) -> None:
        self.run, self.programs = run, programs
        self.examples = replace(examples, mean=run.inputs.mean, std=run.inputs.std)
        self.scores = scores_of(run.task, run.task_options)
        self.train, self.held = split(run, len(examples.targets))

    def train_round(
        self, received: SparseState, order: Order, forgetting: ForgettingState | None
    ) -> tuple[SparseState, Totals, Work]:
        """Train a received state; return the new one, what was counted and what it took (modelled).

        Raises
        ------
        NotFiniteError
            If a loss is not finite.
        InputError
            If a program is not of this model.
        """
        chosen = self._chosen(received, order, forgetting)
        generator = numpy_generator(self.run.seed, order.round, self.run.partition, "batches")
        epoch = Minibatches(
            self.examples,
            self.train,
            self.run.batch_size,
            generator=generator,
            augmentation=self.run.augmentation,
            kept=chosen,
        )
        training = _Training(self, received, order, self.run.local_epochs * len(epoch))
        # A generator expression would hold each batch while the next one is made.
        batches = chain.from_iterable(epoch.epoch() for _ in range(self.run.local_epochs))
        return training.fit(batches, forgetting)

    def evaluate(self, received: SparseState) -> Totals:
        """Evaluate a received state on the examples held out."""
        totals = Totals()
        for targets, outputs in self._answers(received, self.held):
            loss = float(self.scores.losses(outputs, targets).sum())
            totals.add(loss, targets, outputs, self.scores)
        return totals

    def _chosen(
        self, received: SparseState, order: Order, forgetting: ForgettingState | None
    ) -> Indices:
        """Return the positions among the training examples to train on in this round."""
        if forgetting is None:
            return np.arange(len(self.train))

        def correct(positions: Indices) -> npt.NDArray[np.bool_]:
            answers = self._answers(received, self.train[positions])
            parts = [self.scores.correct(outputs, targets) for targets, outputs in answers]
            return np.concatenate([it for it in parts if it is not None] or [np.zeros(0, bool)])

        return forgetting.of_round(self.run.forgetting, order.progress, correct)

    def _answers(self, state: SparseState, examples: Indices) -> Iterator[tuple[Array, Array]]:
        """Yield targets and outputs of batches of some examples."""
        counts = _counts(state)
        forward = self.programs.forward(
            ProgramRequest(ProgramKind.FORWARD, EVALUATION_GROUP, counts)
        )
        model = NodeModel(self.run.spec, state)
        model.bind(forward)
        for inputs, targets, _ in Minibatches(self.examples, examples, EVALUATION_BATCH).epoch():
            outputs = forward.predict(inputs)
            del inputs  # or they stand in memory while the next ones are made
            yield targets, outputs


class _Training:
    """A round's steps over one model."""

    def __init__(self, rounds: NodeRounds, received: SparseState, order: Order, steps: int) -> None:
        run = rounds.run
        self._rounds, self._run, self._order, self._steps = rounds, run, order, steps
        self._model = NodeModel(run.spec, received)
        self._counts = _counts(received)
        self._rng = numpy_generator(run.seed, order.round, run.partition, "dropout")
        self._bound: dict[ProgramRequest, CompiledStep] = {}
        self._costs: dict[CompiledStep, StepWork] = {}
        self._mutation = (
            RoundMutation(run.mutation, order.progress, run.seed, order.round, owner=run.grows_as)
            if order.mutate
            else None
        )
        self._totals, self._work = Totals(), Work()

    def fit(
        self, batches: Iterator[tuple[Rows, Array, Indices]], forgetting: ForgettingState | None
    ) -> tuple[SparseState, Totals, Work]:
        """Take one step for each batch."""
        mutation, step, number = self._mutation, None, 0
        for inputs, targets, positions in batches:
            reads = mutation is not None and mutation.reads_gradients_of(number, self._steps)
            step = self._step_of(len(targets), reads=reads)
            if number == 0 and mutation is not None and mutation.soft:
                self._model.grow(mutation)
            self._take(step, inputs, targets, number)
            if forgetting is not None:
                correct = self._rounds.scores.correct(step.outputs, targets)
                if correct is not None:
                    forgetting.observe(positions, correct)
            if mutation is not None and mutation.mutates_at(number, self._steps):
                self._model.mutate(mutation, step.gradients)
            number += 1  # noqa: SIM113 - enumerate() holds what it gave last
            del inputs, targets  # or they stand in memory while the next ones are made
        if mutation is not None and mutation.soft and step is not None:
            self._model.drop(mutation, step.gradients)
        for bound in self._bound.values():
            bound.release_memory()  # before there is a copy of the weights
        return self._model.state(), self._totals, self._work + self._beside()

    def _take(self, step: CompiledStep, inputs: Rows, targets: Array, number: int) -> None:
        scores = self._rounds.scores
        loss = step.step(inputs, scores.counted(targets), self._order.learning_rate)
        total = loss * scores.count(targets)
        if not math.isfinite(total):
            raise NotFiniteError(f"batch {number + 1}: the loss is {total}")
        self._totals.add(total, targets, step.outputs, scores)
        if step not in self._costs:  # adding up a program takes as long as running a small one
            self._costs[step] = program_step_work(step.program)
        work = self._costs[step].of_batch(len(targets), step.program.examples)
        self._work += replace(work, sparse_flops=work.sparse_flops * self._model.fullness)

    def _beside(self) -> Work:
        """Return what the round takes beside its steps."""
        inputs, spec = self._run.inputs, self._run.spec
        example = prod(inputs.shape) * np.dtype(inputs.dtype).itemsize
        return round_work(spec.tensors) + batch_work(example * self._totals.examples)

    def _step_of(self, size: int, *, reads: bool) -> CompiledStep:
        """Return the step of a batch of so many examples, in the memory of the model."""
        if reads:
            direct = self._step_of(size, reads=False)
            if self._model.reads_from(direct):
                return direct
            self._bound = {}  # the other step takes the place of this one
        run = self._run
        largest = min(max(size, run.batch_size), run.micro_batch + 1)
        mutates = self._order.mutate
        wanted = ProgramRequest(
            ProgramKind.STEP, largest, self._counts, mutates=mutates, reads=reads
        )
        if wanted not in self._bound:
            step = self._rounds.programs.step(wanted, run.micro_batch, self._rng)
            self._model.bind(step)
            self._bound = {**self._bound, wanted: step}
        return self._bound[wanted]


def split(run: RunDescription, count: int) -> tuple[Indices, Indices]:
    """Return which of a node's examples it trains on, and which are held out."""
    generator = numpy_generator(run.seed, "hold-out", run.partition)
    return hold_out(np.arange(count), run.hold_out, generator)


def _counts(state: SparseState) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((group, len(slots)) for group, slots in state.masks.items()))
