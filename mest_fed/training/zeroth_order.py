"""Training by forward passes alone: the loss along random directions in the place of gradients.

A step draws a direction z, as many normal numbers as weights train, and takes the loss of the batch
at w + eps z and at w - eps z (Malladi et al., "Fine-Tuning Language Models with Just Forward
Passes", NeurIPS 2023, definition 1 and algorithm 1)::

    g = (L(w + eps z) - L(w - eps z)) / (2 eps)
    w <- (1 - eta decay) (w - eta g z)

With several directions the update is the mean of theirs, each taken at the same w. Weights are the
active ones and the dense tensors: on a mask that is how Meerkat trains (Ran et al., ICLR 2026,
arXiv 2506.03337), without one how DeComFL does (Li et al., ICLR 2025). There are no gradients, no
momentum, and no activation is kept. z is drawn from its seed again whenever it is needed, piece by
piece.

Models whose normalisation takes statistics over a batch go forward by torch as in training, so that
their running statistics move; all others go forward as in evaluation, by a program where there is
one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mest_fed.data import Batch
from mest_fed.devices.forward_work import perturbed_step_work
from mest_fed.errors import InputError, not_allowed
from mest_fed.memory.footprint import PERTURBED_AT_ONCE
from mest_fed.nn.identity import plain_tensors
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.norms import has_batch_statistics
from mest_fed.runtime.batches import even_parts
from mest_fed.training.forward_programs import ModelForward, check_forward
from mest_fed.training.mutation import LocalMutation
from mest_fed.training.objective import Metrics, check_finite, judge_correct, weight_of
from mest_fed.training.programs import Programs
from mest_fed.training.trainer import LocalTrainer


@dataclass(frozen=True)
class ZerothOrder:
    """How the loss is probed.

    Parameters
    ----------
    epsilon : float
        Length of a probe, as a multiple of a direction of normal numbers.
    perturbations : int
        Directions of a step.
    """

    epsilon: float = 1e-3
    perturbations: int = 1

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise not_allowed("training.epsilon", self.epsilon, "a number above 0")
        if self.perturbations < 1:
            allowed = "a whole number of at least 1"
            raise not_allowed("training.perturbations", self.perturbations, allowed)


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


class Directions:
    """Moves the trained weights of a model along directions that only their seeds remember.

    Parameters
    ----------
    model : nn.Module
        Its parameters that require a gradient move, in their order; padding of sparse values stays
        zero.
    """

    def __init__(self, model: nn.Module) -> None:
        padding = {
            id(layer.values): _padding_of(layer)
            for layer in model.modules()
            if isinstance(layer, SparseLayer)
        }
        trained = [it for it in model.parameters() if it.requires_grad]
        with plain_tensors():  # masks are not looked at for each operation
            self._moved = [(it.detach().view(-1), padding.get(id(it))) for it in trained]

    @property
    def weights(self) -> int:
        """Numbers that move."""
        return sum(flat.numel() for flat, _ in self._moved)

    @torch.no_grad()
    def move(self, seed: int, amount: float) -> None:
        """Add a multiple of a seed's direction to the weights."""
        generator = np.random.default_rng(seed)
        for flat, padding in self._moved:
            for part in _pieces(len(flat)):
                drawn = generator.standard_normal(part.stop - part.start, dtype=np.float32)
                piece = torch.from_numpy(drawn).to(flat.device, flat.dtype)
                flat[part].add_(piece, alpha=amount)
            if padding is not None:
                flat[padding] = 0

    @torch.no_grad()
    def shrink(self, share: float) -> None:
        """Take a share of the weights off."""
        for flat, _ in self._moved:
            flat.mul_(1 - share)


def _pieces(length: int) -> Iterator[slice]:
    for start in range(0, length, PERTURBED_AT_ONCE):
        yield slice(start, min(start + PERTURBED_AT_ONCE, length))


def _padding_of(layer: SparseLayer) -> Tensor | None:
    """Return where the flattened values of a layer are padding; None if nowhere."""
    layout, slots = layer.layout, layer.slots
    if layout.active_weights(slots) == layer.values.numel():
        return None
    beyond: Tensor = layout.positions(slots) >= layout.num_weights
    return beyond.view(-1).nonzero().view(-1)


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
        self._directions: Directions | None = None

    def fit(self, batches: Iterable[Batch], mutation: LocalMutation | None = None) -> Metrics:
        """Take one step for each batch; see :meth:`LocalTrainer.fit`.

        Metrics are of the first pass of each step.
        """
        try:
            return super().fit(batches, mutation)
        finally:
            self._directions = None

    @torch.no_grad()
    def _step(self, forward: Callable[[Tensor], Tensor], batch: Batch, totals: Metrics) -> None:
        if self._directions is None:  # now the memory options say what is frozen
            self._directions = Directions(self.model)
        made = None
        if self.programs is not None:
            made = self.programs.forward_pass(batch.inputs, self.micro_batch)
        run, most = (forward, self.micro_batch) if made is None else (made, len(batch.targets))
        move, how = self._directions.move, self.how
        seeds = [int(it) for it in self.rng.integers(2**63, size=how.perturbations)]
        slopes: list[float] = []
        for seed in seeds:
            if slopes:
                move(seeds[len(slopes) - 1], how.epsilon)
            move(seed, how.epsilon)
            above = self._loss(run, most, batch, None if slopes else totals)
            move(seed, -2 * how.epsilon)
            slopes.append((above - self._loss(run, most, batch)) / (2 * how.epsilon))
        self._update(seeds, slopes)
        self._count(made, len(batch.targets))
        if self.guard is not None:
            self.guard(self)

    def _update(self, seeds: list[int], slopes: list[float]) -> None:
        """Step down the mean of the directions' slopes, from where the last probe was."""
        assert self._directions is not None
        rate: float = self.optimizer.learning_rate  # type: ignore[union-attr]
        share = rate / len(seeds)
        self._directions.move(seeds[-1], self.how.epsilon - share * slopes[-1])
        for seed, slope in zip(seeds[:-1], slopes[:-1], strict=True):
            self._directions.move(seed, -share * slope)
        decay: float = self.optimizer.weight_decay  # type: ignore[union-attr]
        if decay:
            self._directions.shrink(rate * decay)

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
            outputs = run(batch.inputs[part].to(device))
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

    def _count(self, made: ModelForward | None, examples: int) -> None:
        """Count what a step on so many examples took."""
        if self._costs is None:
            return
        assert self._directions is not None
        if made is not None:
            forward, group = made.work, made.group
        else:
            forward, group = self._costs(), self.micro_batch
        step = perturbed_step_work(forward, self._directions.weights, self.how.perturbations)
        self.work += step.of_batch(examples, group)
