"""Metrics of any number of examples: sums over batches, and what an objective makes of them.

Sums of batches, devices and rounds add up, so that a metric over a fleet is exactly the metric over
all its examples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from mest_fed.described import one_line
from mest_fed.errors import ObjectiveError
from mest_fed.schema import LOSS, Metric
from mest_fed.training.objective import RESERVED, BatchSums, Objective, Sum, kind_of_answer


@dataclass
class Metrics:
    """Sums over presentations of examples.

    Parameters
    ----------
    loss : float
        Sum of the losses.
    examples : int
        Examples presented.
    count : float
        What they count in the mean loss: see :meth:`Objective.count`.
    sums : dict
        Of :meth:`Objective.sums`, float64.
    """

    loss: float = 0.0
    examples: int = 0
    count: float = 0
    sums: dict[str, Sum] = field(default_factory=dict)

    @property
    def mean_loss(self) -> float:
        """Mean loss; NaN without examples."""
        return self.loss / self.count if self.count else math.nan

    def add(self, loss: float, targets: Tensor, objective: Objective, sums: BatchSums) -> None:
        """Add a batch."""
        self.loss += loss
        self.examples += len(targets)
        self.count += weight_of(objective, targets)
        self.add_sums({name: _as_sum(name, value) for name, value in sums.items()})

    def add_sums(self, sums: Mapping[str, Sum]) -> None:
        """Add sums of further examples.

        Raises
        ------
        ObjectiveError
            If they are not of the same names and lengths as those before.
        """
        if self.sums and self.sums.keys() != sums.keys():
            raise ObjectiveError(
                f"sums() returned {', '.join(sums) or 'nothing'}, and before "
                f"{', '.join(self.sums)}; allowed: the same names for every batch"
            )
        for name, value in sums.items():
            before = self.sums.get(name, 0.0)
            if name in self.sums and np.shape(before) != np.shape(value):
                raise ObjectiveError(
                    f"sums() returned {name} of shape {np.shape(value)}, and before of "
                    f"{np.shape(before)}; allowed: one shape for every batch"
                )
            self.sums[name] = before + value

    def values(self, objective: Objective) -> dict[str, float]:
        """Return the metrics of an objective, and the loss; nothing without examples.

        Raises
        ------
        ObjectiveError
                If :meth:`Objective.values` raises, leaves out a metric, or returns something else.
        """
        if not self.count:
            return {}
        try:
            given = objective.values({**self.sums, "loss": self.loss, "count": float(self.count)})
        except Exception as error:  # a task of one's own may raise anything
            kind = type(error).__name__
            raise ObjectiveError(f"values() raised {kind}: {one_line(error)}") from error
        values = {}
        for metric in objective.metrics:
            if metric.name not in given:
                raise ObjectiveError(
                    f"values() returned {', '.join(given) or 'nothing'}; "
                    f"the metric {metric.name} is missing"
                )
            values[metric.name] = _as_number(metric, given[metric.name])
        return {**values, LOSS.name: self.mean_loss}


def weight_of(objective: Objective, targets: Tensor) -> float:
    """Return what a batch counts, as a number.

    Raises
    ------
    ObjectiveError
        If it is none, or below zero.
    """
    count: object = objective.count(targets)
    number = count.item() if isinstance(count, Tensor) and count.numel() == 1 else count
    if not isinstance(number, int | float) or not 0 <= number < math.inf:
        raise ObjectiveError(f"count() returned {count!r}; allowed: a number from 0")
    return number


def _as_sum(name: str, value: object) -> Sum:
    if not name.isidentifier() or name in RESERVED:
        raise ObjectiveError(
            f"sums() returned {name!r}; allowed: identifiers, not {', '.join(RESERVED)}"
        )
    array = value.detach().double().cpu().numpy() if isinstance(value, Tensor) else value
    if not isinstance(array, np.ndarray | int | float | np.number) or np.ndim(array) > 1:
        raise ObjectiveError(
            f"sums() returned {name} as {kind_of_answer(value)}; "
            "allowed: a number, or a vector of numbers"
        )
    return float(array) if np.ndim(array) == 0 else np.asarray(array, dtype=np.float64)


def _as_number(metric: Metric, value: object) -> float:
    number = value
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        number = value.item()
    if not isinstance(number, int | float | np.number):
        raise ObjectiveError(
            f"values() returned {metric.name} as {kind_of_answer(value)}; not a number"
        )
    if metric.share and not (math.isnan(number) or -1e-6 <= number <= 1 + 1e-6):
        raise ObjectiveError(f"{metric.name} = {number:g}; allowed: a share in [0, 1]")
    return float(min(max(number, 0.0), 1.0)) if metric.share else float(number)
