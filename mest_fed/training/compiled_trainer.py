"""Local training by compiled programs: the same batches, mutations and sums as torch's trainer."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mest_fed.data import Batch
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.training.metrics import Metrics, weight_of
from mest_fed.training.model_step import ModelStep
from mest_fed.training.mutation import LocalMutation
from mest_fed.training.objective import Objective
from mest_fed.training.objective_checks import check_finite, judge_correct
from mest_fed.training.places import Copies
from mest_fed.training.programs import Programs
from mest_fed.training.tasks import NextToken
from mest_fed.training.trainer import LocalTrainer


class CompiledTrainer(LocalTrainer):
    """Trains a model by the compiled programs of its steps.

    Model and optimizer are the programs' memory, so a step can be torch's at any time. It is where
    a mutation reads dense gradients, and where there is no program for a batch.

    Parameters
    ----------
    *args, **kwargs
        As for :class:`LocalTrainer`; the optimizer is a :class:`ClientOptimizer`.
    programs : Programs
        Of the model.
    settings : OptimizerSettings
        What the optimizer was built from.
    rng : numpy.random.Generator
        Draws the seeds of dropout.
    room : float
        Most active granules of a layer in a run, as a multiple of its target: a mutation up to
        there needs no new program.
    batch_size : int, optional
        Of the largest batch. Where the micro-batch holds it, weights may be updated directly.
    """

    def __init__(
        self,
        *args: Any,
        programs: Programs,
        settings: OptimizerSettings,
        rng: np.random.Generator,
        room: float = 1.0,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.programs = programs
        self.settings = settings
        self.rng = rng
        self.room = room
        self.batch_size = batch_size
        #: Shape of an example, whether batches are whole -> the step of the present micro-batch,
        #: bound to model and optimizer as they are.
        self._bound: dict[tuple[tuple[tuple[int, ...], torch.dtype], bool], ModelStep | None] = {}
        self._bound_for = 0
        self._copies = Copies()
        self._layers = [it for it in self.model.modules() if isinstance(it, SparseLayer)]

    def fit(self, batches: Iterable[Batch], mutation: LocalMutation | None = None) -> Metrics:
        """Take one optimizer step for each batch; see :meth:`LocalTrainer.fit`."""
        try:
            return super().fit(batches, mutation)
        finally:
            self._let_go()

    def halve(self) -> bool:
        """Halve the groups that batches are taken in, from the next batch on.

        They may be smaller than the micro-batch already.
        """
        steps = [it.step for it in self._bound.values() if it is not None]
        sizes = [it.program.examples for it in steps if it.program.takes_groups]
        self.micro_batch = min(self.micro_batch, *sizes) if sizes else self.micro_batch
        return super().halve()

    def _step(self, forward: Callable[[Tensor], Tensor], batch: Batch, totals: Metrics) -> None:
        reads = self.optimizer.keep_gradients  # type: ignore[union-attr]
        # Programs have gradients of active weights alone.
        dense = reads and any(layer.keep_dense_gradient for layer in self._layers)
        step = None if dense else self._step_for(batch, reads=reads)
        if step is None:
            self._let_go()  # what follows, a mutation say, may change the memory of the model
            self.programs.let_go()
            super()._step(forward, batch, totals)
            return
        objective, targets = self.objective, batch.targets
        rate = self.optimizer.learning_rate  # type: ignore[union-attr]
        self.work += step.work(len(targets))
        loss, outputs = step.train(batch.inputs, _counted(objective, targets), rate)
        if reads:
            step.give_gradients()
            self._let_go()  # what follows is a mutation, which may change the model's memory
        total = loss * weight_of(objective, targets)
        check_finite(total, objective, outputs, targets)
        totals.add(total, targets, objective, objective.sums(outputs, targets))
        if self.forgetting is not None:
            correct = judge_correct(objective, outputs, targets)
            self.forgetting.observe(batch.examples, correct.numpy())
        if self.guard is not None:
            self.guard(self)

    def _step_for(self, batch: Batch, *, reads: bool) -> ModelStep | None:
        """Return the step of a batch, bound; one whose gradients can be read, if need be."""
        largest = max(len(batch.targets), self.batch_size or self.micro_batch + 1)
        whole = largest <= self.micro_batch
        if whole and reads:
            direct = self._step_for(batch, reads=False)
            if direct is None or direct.keeps_gradients:
                return direct
            self._let_go()  # the other step takes the place of this one
            whole = False
        if self._bound_for != self.micro_batch:
            self._let_go()  # of steps of another micro-batch, whose memory is then free
            self._bound_for = self.micro_batch
        key = batch.example, whole
        if key not in self._bound:
            step = self.programs.step(
                self.objective,
                self.settings,
                batch,
                self.micro_batch,
                room=self.room,
                whole=whole,
                storage=self.memory.saved,
            )
            if step is not None:
                step.bind(self.optimizer, self._copies)  # type: ignore[arg-type]
                step.step.rng = self.rng
            self._bound[key] = step
        return self._bound[key]

    def _let_go(self) -> None:
        """Use no bound step any more; model and optimizer hold all that was computed."""
        self._copies.give_back()
        self._bound = {}


def _counted(objective: Objective, targets: Tensor) -> Tensor:
    """Return targets in which those that do not count are negative, as in programs."""
    if isinstance(objective, NextToken):
        return targets.where(targets != objective.ignore, -1)
    return targets
