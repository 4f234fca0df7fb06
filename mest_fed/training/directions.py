"""Steps along random directions: where the weights go, given the slope of the loss along each.

A step draws a direction z, as many normal numbers as weights train, and takes the loss of the batch
at w + eps z and at w - eps z (Malladi et al., "Fine-Tuning Language Models with Just Forward
Passes", NeurIPS 2023, definition 1 and algorithm 1)::

    g = (L(w + eps z) - L(w - eps z)) / (2 eps)
    w <- (1 - eta decay) (w - eta g z)

With several directions the update is the mean of theirs, each taken at the same w. z is drawn from
its seed again whenever it is needed, piece by piece. So who knows the seeds and the slopes can
repeat the steps without the data (DeComFL: Li et al., ICLR 2025, arXiv 2405.15861):
:func:`repeat_steps` does, with the same bits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mest_fed.errors import not_allowed
from mest_fed.memory.round_bytes import PERTURBED_AT_ONCE
from mest_fed.nn.identity import plain_tensors
from mest_fed.nn.layers import SparseLayer


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


class ProbedSteps:
    """Steps of a model's trained weights, one after another.

    Parameters
    ----------
    model : nn.Module
        What of it requires a gradient trains.
    how : ZerothOrder
        How the loss is probed.
    rng : numpy.random.Generator
        Draws the seeds of directions.
    learning_rate, weight_decay : float
        Of a step.
    """

    def __init__(
        self,
        model: nn.Module,
        how: ZerothOrder,
        rng: np.random.Generator,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
    ) -> None:
        self.how, self.rng = how, rng
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.directions = Directions(model)

    def take(self, slope: Callable[[int, Callable[[], None]], float]) -> list[float]:
        """Take a step.

        Parameters
        ----------
        slope : callable
            Gives the slope along a direction of the step, by its number, while the weights are at
            its far end; what it is given beside takes them to the near end, which it must call.

        Returns
        -------
        list of float
            The slopes, in float32: as precise as they travel.
        """
        move, epsilon = self.directions.move, self.how.epsilon
        seeds = [int(it) for it in self.rng.integers(2**63, size=self.how.perturbations)]
        slopes: list[float] = []
        for number, seed in enumerate(seeds):
            if number:
                move(seeds[number - 1], epsilon)
            move(seed, epsilon)

            def cross(seed: int = seed) -> None:
                move(seed, -2 * epsilon)

            slopes.append(float(np.float32(slope(number, cross))))
        share = self.learning_rate / len(seeds)
        move(seeds[-1], epsilon - share * slopes[-1])  # from where the last probe was
        for seed, found in zip(seeds[:-1], slopes[:-1], strict=True):
            move(seed, -share * found)
        if self.weight_decay:
            self.directions.shrink(self.learning_rate * self.weight_decay)
        return slopes


def repeat_steps(steps: ProbedSteps, slopes: Sequence[float]) -> None:
    """Repeat steps by the slopes that they found.

    Parameters
    ----------
    steps : ProbedSteps
        As of who took them: the same weights, and a generator in the same state.
    slopes : sequence of float
        Of all steps, as :meth:`ProbedSteps.take` gave them.
    """
    each = steps.how.perturbations
    for start in range(0, len(slopes), each):

        def known(number: int, cross: Callable[[], None], start: int = start) -> float:
            cross()
            return slopes[start + number]

        steps.take(known)
