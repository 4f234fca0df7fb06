"""One round on one client: receive, train under the plan, mutate if due, send."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
from torch import nn

from clients.capability import Capability
from clients.state import ClientState
from mest_fed.data import Batches
from mest_fed.nn import SparseState, read_state, write_state
from mest_fed.rng import torch_generator
from mest_fed.task import Task
from mest_fed.training import (
    EVALUATION_BATCH,
    ForgettingState,
    LocalMutation,
    LocalTrainer,
    RoundMutation,
    Tally,
    choose_device,
    evaluate,
)


@dataclass(frozen=True)
class RoundOrder:
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
        return min(1.0, (self.round - 1) / task.config.run.rounds)


@dataclass(frozen=True)
class RoundResult:
    """What a client's round gave.

    Parameters
    ----------
    state : SparseState
        Weights and masks after training.
    tally : Tally
        Of all presentations.
    work_dense, work_sparse : float
        Floating-point operations of training, modelled from live weights.
    """

    state: SparseState
    tally: Tally
    work_dense: float
    work_sparse: float


def train_round(
    task: Task,
    received: SparseState,
    order: RoundOrder,
    who: Capability,
    kept: ClientState,
    *,
    guard: Callable[[LocalTrainer], None] | None = None,
) -> RoundResult:
    """Train the received state on this client's examples.

    Every draw comes from (seed, round, partition, purpose). ``guard`` is the trainer's.
    """
    training, seed = task.config.training, task.config.run.seed
    model = _resident_model(task)
    write_state(model, received)
    examples, _ = task.examples(who.partition)
    forgetting = kept.forgetting(len(examples)) if task.forgetting.active else None
    chosen = _examples_this_round(task, model, order, examples, forgetting)
    progress = order.progress(task)
    plan = who.plan
    settings = task.optimizer(progress)
    if not plan.shape.momentum:
        settings = settings.without_momentum()
    optimizer = settings.build(model, consume=plan.savings.consume)
    epoch = Batches(
        task.data.train,
        examples,
        training.batch_size,
        generator=torch_generator(seed, order.round, who.partition, "batches"),
        augmentation=task.config.data.augmentation,
        kept=chosen,
    )
    mutation = None
    if order.mutate:
        what = RoundMutation(task.method, progress, seed, order.round)
        mutation = LocalMutation(model, optimizer, what, training.local_epochs * len(epoch))
    work = task.work(training.local_epochs * len(chosen), plan.savings)
    trainer = LocalTrainer(
        model,
        optimizer,
        micro_batch=plan.micro_batch,
        savings=plan.savings,
        guard=guard,
        forgetting=forgetting,
    )
    batches = chain.from_iterable(repeat(epoch, training.local_epochs))
    try:
        tally = trainer.fit(batches, mutation)
    finally:
        optimizer.close()  # the model is resident: nothing of this round may stay on it
    if forgetting is not None:
        kept.keep_forgetting(forgetting)
    return RoundResult(read_state(model), tally, work.dense_flops, work.sparse_flops)


def evaluate_round(task: Task, received: SparseState, who: Capability) -> Tally:
    """Evaluate the received state on this client's held-out examples."""
    model = _resident_model(task)
    write_state(model, received)
    _, held = task.examples(who.partition)
    tally, _ = evaluate(model, Batches(task.data.train, held, EVALUATION_BATCH))
    return tally


def _resident_model(task: Task) -> nn.Module:
    """Return the process's model on the device that computes; going through it takes 0.3 ms."""
    model, device = task.model, choose_device(task.config.training.device)
    if next(model.parameters()).device != device:
        model.to(device)
    return model


def _examples_this_round(
    task: Task,
    model: nn.Module,
    order: RoundOrder,
    examples: np.ndarray,
    forgetting: ForgettingState | None,
) -> np.ndarray:
    """Return the positions within ``examples`` to train on, leaving out the unforgettable."""
    if forgetting is None:
        return np.arange(len(examples))
    policy = task.forgetting
    if order.progress(task) >= policy.start:
        if not forgetting.removed.any():
            forgetting.remove(policy.fraction)
        elif policy.readmit:
            left_out = np.flatnonzero(forgetting.removed)
            _, correct = evaluate(
                model, Batches(task.data.train, examples[left_out], EVALUATION_BATCH)
            )
            forgetting.readmit(left_out, correct.numpy())
    return forgetting.kept()
