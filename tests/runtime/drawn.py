"""Sizes and numbers of small cases, drawn from a seed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


class Draw:
    """Sizes and numbers of one case."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def size(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def flag(self) -> bool:
        return bool(self.rng.integers(2))

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape)

    def halves(self, *shape: int) -> np.ndarray:
        """Multiples of 1/2, so that kinks and equal maxima occur."""
        return self.rng.integers(-8, 17, size=shape) / 2


@dataclass(frozen=True)
class Case:
    """Inputs of one operator, and torch's function of them.

    ``function`` takes tensors by name and returns outputs by name; ``states`` are what inputs that
    are updated become.
    """

    inputs: dict[str, np.ndarray]
    function: Callable[..., dict[str, torch.Tensor]]
    attributes: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


#: How the cases of an operator are drawn.
Makes = Callable[[Draw], Case]
