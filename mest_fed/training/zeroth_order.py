"""Training by forward passes alone: the loss along random directions in the place of gradients.

:mod:`mest_fed.training.directions` has the steps. Weights are the active ones and the dense
tensors: on a mask that is how Meerkat trains (Ran et al., ICLR 2026, arXiv 2506.03337), without one
how DeComFL does (Li et al., ICLR 2025). There are no gradients, no momentum, and no activation is
kept.

Models whose normalisation takes statistics over a batch go forward by torch as in training, so that
their running statistics move; all others go forward as in evaluation, by a program where there is
one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mest_fed.data import Batch
from mest_fed.devices.forward_work import perturbed_step_work
from mest_fed.errors import InputError
from mest_fed.nn.norms import has_batch_statistics
from mest_fed.runtime.batches import even_parts
from mest_fed.training.directions import ProbedSteps, ZerothOrder
from mest_fed.training.forward_programs import ModelForward, check_forward
from mest_fed.training.metrics import Metrics, weight_of
from mest_fed.training.mutation import LocalMutation
from mest_fed.training.objective_checks import check_finite, judge_correct
from mest_fed.training.programs import Programs
from mest_fed.training.trainer import LocalTrainer


def check_probed(model: nn.Module, inputs: tuple[tuple[int, ...], torch.dtype]) -> None:
    """Check that a model's forward passes in training are a program.

    Raises
    ------
    InputError
        If they are not: one line that says why.
    """
    if has_batch_statistics(model):
        raise InputError("its normalisation takes statistics over a batch, and moves them")
    check_forward(model, inputs)


class ZerothOrderTrainer(LocalTrainer):
    """Trains a model by two forward passes for each direction of a step.

    Parameters
    ----------
    *args, **kwargs
        As for :class:`LocalTrainer`; of the optimizer, learning rate and weight decay count, and
        ``costs`` are those of a forward pass by torch.
    how : ZerothOrder
        How the loss is probed.
    rng : numpy.random.Generator
        Draws the seeds of directions.
    programs : Programs, optional
        Of the model; without them torch goes forward.
    """

    def __init__(
        self,
        *args: Any,
        how: ZerothOrder,
        rng: np.random.Generator,
        programs: Programs | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.how, self.rng = how, rng
        self.as_in_training = has_batch_statistics(self.model)
        self.programs = None if self.as_in_training else programs
        #: What the steps found, of all directions in turn.
        self.slopes: list[float] = []
        self._steps: ProbedSteps | None = None

    def fit(self, batches: Iterable[Batch], mutation: LocalMutation | None = None) -> Metrics:
        """Take one step for each batch; see :meth:`LocalTrainer.fit`.

        Metrics are of the first pass of each step.
        """
        try:
            return super().fit(batches, mutation)
        finally:
            self._steps = None

    @torch.no_grad()
    def _step(self, forward: Callable[[Tensor], Tensor], batch: Batch, totals: Metrics) -> None:
        if self._steps is None:  # now the memory options say what is frozen
            self._steps = self._begin()
        made = None
        if self.programs is not None:
            made = self.programs.forward_pass(batch.part(slice(1)), self.micro_batch)
        run, most = (forward, self.micro_batch) if made is None else (made, len(batch.targets))

        def slope(number: int, cross: Callable[[], None]) -> float:
            above = self._loss(run, most, batch, None if number else totals)
            cross()
            return (above - self._loss(run, most, batch)) / (2 * self.how.epsilon)

        self.slopes += self._steps.take(slope)
        self._count(made, len(batch.targets), self._steps.directions.weights)
        if self.guard is not None:
            self.guard(self)

    def _begin(self) -> ProbedSteps:
        rate: float = self.optimizer.learning_rate  # type: ignore[union-attr]
        decay: float = self.optimizer.weight_decay  # type: ignore[union-attr]
        return ProbedSteps(self.model, self.how, self.rng, learning_rate=rate, weight_decay=decay)

    def _loss(
        self,
        run: Callable[[Tensor], Tensor],
        most: int,
        batch: Batch,
        totals: Metrics | None = None,
    ) -> float:
        """Return the mean loss of a batch where the weights are; count it, if there are totals."""
        objective, size, loss = self.objective, len(batch.targets), 0.0
        weight = weight_of(objective, batch.targets) or 1.0
        device = next(self.model.parameters()).device
        right, before = list[Tensor](), 0
        for count in even_parts(size, most):
            part = slice(before, before + count)
            before += count
            targets = batch.targets[part].to(device)
            outputs = run(batch.part(part).to(device))
            total = objective.total_loss(outputs, targets).item()
            check_finite(total, objective, outputs, targets)
            loss += total
            if totals is not None:
                totals.add(total, targets, objective, objective.sums(outputs, targets))
                if self.forgetting is not None:
                    right.append(judge_correct(objective, outputs, targets))
        if right and self.forgetting is not None:
            self.forgetting.observe(batch.examples, torch.cat(right).numpy())
        return loss / weight

    def _count(self, made: ModelForward | None, examples: int, weights: int) -> None:
        """Count what a step on so many examples took."""
        if self._costs is None:
            return
        if made is not None:
            forward, group = made.work, made.group
        else:
            forward, group = self._costs(), self.micro_batch
        step = perturbed_step_work(forward, weights, self.how.perturbations)
        self.work += step.of_batch(examples, group)
