"""One round on one client: receive, train under the plan, mutate if due, send."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context
from torch import nn

from mest_fed.catalogue import Growth
from mest_fed.client.capability import Capability
from mest_fed.data import Batches
from mest_fed.devices import Work
from mest_fed.devices.forward_work import third_of
from mest_fed.errors import ObjectiveError
from mest_fed.kernels.choice import Choices
from mest_fed.nn import SparseLayer, read_state
from mest_fed.nn.tuning import set_choices
from mest_fed.rng import numpy_generator
from mest_fed.sparsity.arrays import Slots
from mest_fed.sparsity.state import SparseState
from mest_fed.task import Task
from mest_fed.training import (
    CompiledTrainer,
    ForgettingState,
    LocalMutation,
    LocalTrainer,
    Metrics,
    RoundMutation,
    choose_device,
    evaluate,
    judge,
)
from mest_fed.training.zeroth_order import ZerothOrderTrainer
from mest_fed.wire import Residual
from mest_fed.wire.records import as_array, as_numpy

MASKS = "mest.masks"
FORGETTING = "mest.forgetting"
RESIDUAL_MASKS = "mest.residual.masks"
RESIDUAL_VALUES = "mest.residual.values"
KERNELS = "mest.kernels"

Arrays = dict[str, npt.NDArray[Any]]


class ClientState:
    """Typed access to a client's ``Context.state``.

    Parameters
    ----------
    context : Context
        Of this client; setting an attribute writes through to it.
    """

    def __init__(self, context: Context) -> None:
        self._state = context.state

    @property
    def masks(self) -> dict[str, Slots] | None:
        """The mask set that this client and the server both know, or None."""
        return self._read(MASKS)

    @masks.setter
    def masks(self, masks: dict[str, Slots]) -> None:
        self._write(MASKS, masks)

    @property
    def masks_record(self) -> ArrayRecord | None:
        """That mask set as it is kept."""
        return self._record(MASKS)

    @masks_record.setter
    def masks_record(self, record: ArrayRecord) -> None:
        self._state[MASKS] = record

    @property
    def residual(self) -> Residual | None:
        """What 8-bit uploads have left unsent so far, or None."""
        masks, kept = self._read(RESIDUAL_MASKS), self._record(RESIDUAL_VALUES)
        if masks is None or kept is None:
            return None
        return Residual(masks, {name: as_numpy(array) for name, array in kept.items()})

    @residual.setter
    def residual(self, residual: Residual | None) -> None:
        if residual is not None:
            self._write(RESIDUAL_MASKS, residual.masks)
            self._write(RESIDUAL_VALUES, residual.values)

    @property
    def kernels(self) -> str | None:
        """The table of kernels that this device timed, as JSON, or None."""
        record = self._state.config_records.get(KERNELS)
        return None if record is None else str(record["table"])

    @kernels.setter
    def kernels(self, table: str) -> None:
        self._state[KERNELS] = ConfigRecord({"table": table})

    def forgetting(self, num_examples: int) -> ForgettingState:
        """Return the forgetting state, fresh if there is none for so many examples."""
        kept = self._read(FORGETTING)
        if kept is None or len(kept["codes"]) != num_examples:
            return ForgettingState.fresh(num_examples)
        return ForgettingState(kept["codes"].copy())

    def keep_forgetting(self, state: ForgettingState) -> None:
        """Keep the forgetting state."""
        self._write(FORGETTING, {"codes": state.codes})

    def _read(self, key: str) -> Arrays | None:
        record = self._record(key)
        return None if record is None else {name: array.numpy() for name, array in record.items()}

    def _record(self, key: str) -> ArrayRecord | None:
        record = self._state.get(key)  # ``array_records`` copies all records into a new mapping
        return record if isinstance(record, ArrayRecord) else None

    def _write(self, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._state[key] = ArrayRecord({name: as_array(array) for name, array in arrays.items()})


@dataclass(frozen=True)
class TrainInstruction:
    """What the server asks for.

    Parameters
    ----------
    round : int
        From 1.
    mutate : bool
        Whether the client mutates in this round.
    """

    round: int
    mutate: bool

    def progress(self, task: Task) -> float:
        """Return the run's progress at the start of the round, in [0, 1)."""
        return task.progress(self.round)


@dataclass(frozen=True)
class RoundResult:
    """What a client's round gave.

    Parameters
    ----------
    state : SparseState
        Weights and masks after training.
    totals : Metrics
        Of all presentations.
    work : Work
        What training took (modelled).
    slopes : sequence of float
        What the steps found along their directions, where training goes forward alone.
    """

    state: SparseState
    totals: Metrics
    work: Work
    slopes: Sequence[float] = ()


def train_round(
    task: Task,
    received: SparseState,
    order: TrainInstruction,
    who: Capability,
    kept: ClientState,
    *,
    choices: Choices | None = None,
    guard: Callable[[LocalTrainer], None] | None = None,
) -> RoundResult:
    """Train the received state on this client's examples.

    Every draw comes from (seed, round, partition, purpose). ``choices`` are the kernels of the
    sparse layers, ``guard`` is the trainer's.
    """
    training = task.config.training
    model = _resident_model(task, choices)
    task.load(received)
    examples, _ = task.examples(who.partition)
    forgetting = kept.forgetting(len(examples)) if task.forgetting.active else None
    chosen = _examples_this_round(task, model, order, examples, forgetting)
    progress = order.progress(task)
    plan = who.plan
    settings = task.optimizer(progress)
    if not plan.shape.momentum:
        settings = settings.without_momentum()
    optimizer = settings.build(model, release_gradients=plan.memory.release_gradients)
    generator = numpy_generator(task.config.run.seed, order.round, who.partition, "batches")
    epoch = _epoch(task, examples, chosen, generator)
    mutation = None
    if order.mutate:
        private = task.config.sparsity.growth == Growth.PRIVATE
        owner = who.partition if private else None
        seed = task.config.run.seed
        what = RoundMutation(task.method, progress, seed, order.round, owner=owner)
        mutation = LocalMutation(model, optimizer, what, training.local_epochs * len(epoch))
    weights = sum(parameter.numel() for parameter in optimizer.parameters)
    updates = Work(dense_flops=settings.extra_flops * weights)
    how: dict[str, Any] = {
        "micro_batch": plan.micro_batch,
        "memory": plan.memory,
        "guard": guard,
        "forgetting": forgetting,
        "objective": task.objective,
        "costs": lambda: task.torch_work(plan.memory).with_step(updates),
    }
    trainer: LocalTrainer
    if task.goes_forward_alone:
        how["costs"] = lambda: third_of(task.torch_work())
        trainer = ZerothOrderTrainer(
            model,
            optimizer,
            **how,
            how=task.zeroth_order,
            rng=task.directions_rng(order.round, who.partition),
            programs=task.programs if task.compiles() else None,
        )
    elif task.compiles(plan.memory):
        rng = numpy_generator(task.config.run.seed, order.round, who.partition, "dropout")
        trainer = CompiledTrainer(
            model,
            optimizer,
            **how,
            programs=task.programs,
            settings=settings,
            rng=rng,
            room=task.method.peak if order.mutate else 1.0,
            batch_size=training.batch_size,
        )
    else:
        trainer = LocalTrainer(model, optimizer, **how)
    batches = chain.from_iterable(epoch.in_parts() for _ in range(training.local_epochs))
    try:
        totals = trainer.fit(batches, mutation)
    except ObjectiveError as error:
        raise type(error)(_placed(task, who, order.round, error)) from None
    finally:
        optimizer.close()  # the model is resident: nothing of this round may stay on it
        task.programs.release_memory()  # before there are copies of the weights for the message
    if forgetting is not None:
        kept.keep_forgetting(forgetting)
    beside = task.round_work(totals.examples)
    slopes = trainer.slopes if isinstance(trainer, ZerothOrderTrainer) else ()
    return RoundResult(read_state(model), totals, trainer.work + beside, slopes)


def _epoch(
    task: Task,
    examples: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
    generator: np.random.Generator,
) -> Batches:
    """Return the batches of one epoch over the chosen ones of a client's examples."""
    return Batches(
        task.data.train,
        examples,
        task.config.training.batch_size,
        generator=generator,
        augmentation=task.config.data.augmentation,
        kept=chosen,
    )


def evaluate_round(
    task: Task,
    received: SparseState,
    who: Capability,
    number: int,
    choices: Choices | None = None,
) -> Metrics:
    """Evaluate the received state of a round on this client's held-out examples."""
    model = _resident_model(task, choices)
    task.load(received)
    _, held = task.examples(who.partition)
    batches = Batches(task.data.train, held, task.evaluation_batch)
    try:
        return evaluate(model, batches, task.objective, task.forward)
    except ObjectiveError as error:
        raise type(error)(_placed(task, who, number, error)) from None


def _placed(task: Task, who: Capability, number: int, error: ObjectiveError) -> str:
    """Say where a learning task failed."""
    return f"task.name = {task.config.task.name!r}: client {who.partition}, round {number}: {error}"


def _resident_model(task: Task, choices: Choices | None) -> nn.Module:
    """Return the process's model on the device that computes, with a client's kernels.

    Moving it takes 0.3 ms even where it is there already.
    """
    model, device = task.model, choose_device(task.config.training.device)
    if next(model.parameters()).device != device:
        model.to(device)
    layers = (layer for layer in model.modules() if isinstance(layer, SparseLayer))
    if any(layer.choices is not choices for layer in islice(layers, 1)):  # all hold the same
        set_choices(model, choices)
    return model


def _examples_this_round(
    task: Task,
    model: nn.Module,
    order: TrainInstruction,
    examples: np.ndarray,
    forgetting: ForgettingState | None,
) -> np.ndarray:
    """Return the positions within ``examples`` to train on, leaving out the unforgettable."""
    if forgetting is None:
        return np.arange(len(examples))

    def correct(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        batches = Batches(task.data.train, examples[positions], task.evaluation_batch)
        return judge(model, batches, task.objective, task.forward).numpy()

    return forgetting.of_round(task.forgetting, order.progress(task), correct)
