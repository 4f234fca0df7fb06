"""What a model learns: the loss of each example, metrics with a direction, what counts as correct.

An :class:`Objective` is one learning task. A task of one's own is a subclass with ``metrics``,
:meth:`~Objective.losses`, :meth:`~Objective.sums` and :meth:`~Objective.values`; the configuration
names it as ``task.name = "file.py:Task"``. ``docs/tasks.md`` has an example.

A metric is computed from sums over examples: see ``metrics.py``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mest_fed.errors import ObjectiveError
from mest_fed.schema import LOSS, Metric
from mest_fed.units import number_of

#: A sum over examples: a number, or a vector such as one number for each class.
Sum = float | npt.NDArray[np.float64]
#: What :meth:`Objective.sums` returns by name.
BatchSums = Mapping[str, Tensor | float]


#: Names that no metric and no sum may have: those of what is counted beside them.
RESERVED = ("loss", "count", "counted", "presented", "density")


class Objective(ABC):
    """A learning task.

    Attributes
    ----------
    metrics : sequence of Metric
        What :meth:`values` returns, beside the loss. The first is the primary metric: the report
        draws it, and ``server.keep = "best"`` goes by it. Without any, the loss is primary.
    least_loss : float
        No example has a lower loss, where that is known: the server refuses what is below.
    targets_are_numbers : bool
        Whether targets are read as numbers also where a file or loader gives whole ones, which
        would be classes.
    """

    metrics: Sequence[Metric] = ()
    least_loss: float = -math.inf
    targets_are_numbers: bool = False

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, shape ``(n,)``.

        Parameters
        ----------
        outputs : Tensor
            Of the model, shape ``(n, ...)``.
        targets : Tensor
            Of the data, shape ``(n, ...)``.
        """

    def total_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses, a scalar.

        Raises
        ------
        ObjectiveError
            If there is not one loss for each example.
        """
        losses = self.losses(outputs, targets)
        if not isinstance(losses, Tensor):
            raise ObjectiveError(
                f"losses() returned {kind_of_answer(losses)}; allowed: a tensor of (n,)"
            )
        if losses.shape != targets.shape[:1]:
            raise ObjectiveError(
                f"losses() returned shape {tuple(losses.shape)} for "
                f"{number_of(len(targets), 'example')}; "
                f"allowed: ({len(targets)},), one loss for each example"
            )
        return losses.sum()

    def count(self, targets: Tensor) -> float:
        """Return what a batch counts: the number of examples, or of tokens and the like.

        The loss that is minimised, and the mean loss that is reported, are the sum of losses
        divided by the sum of counts.
        """
        return len(targets)

    def sums(self, outputs: Tensor, targets: Tensor) -> BatchSums:
        """Return sums over a batch by name: scalars or vectors. The loss and the count are added.

        Nothing is differentiated here. Names are identifiers, but none of :data:`RESERVED`.
        """
        return {}

    def values(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """Return each of :attr:`metrics` from sums over any number of examples, not zero.

        ``sums`` has those of :meth:`sums`, and ``loss`` and ``count``.
        """
        return {}

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return which examples are answered correctly, bool of shape ``(n,)``.

        Forgetting events go by it. None: this task cannot tell, and has no forgetting.
        """
        return None

    def num_outputs(self, target_shape: tuple[int, ...], num_classes: int) -> int:
        """Return how many outputs a model needs, as ``num_classes`` of its builder.

        Parameters
        ----------
        target_shape : tuple of int
            Of one example's target.
        num_classes : int
            Classes or tokens of the data set.
        """
        return num_classes

    def output_shapes(
        self, target_shape: tuple[int, ...], num_outputs: int
    ) -> Sequence[tuple[int, ...]]:
        """Return the shapes that a model's output for one example may have; none for any.

        Parameters
        ----------
        target_shape : tuple of int
            Of one example's target.
        num_outputs : int
            From :meth:`num_outputs`.
        """
        return ()

    @property
    def primary(self) -> Metric:
        """The metric that counts where one must."""
        return self.metrics[0] if self.metrics else LOSS

    def metric(self, name: str) -> Metric | None:
        """Return the metric of a name, the loss included; None if there is none."""
        return next((metric for metric in (*self.metrics, LOSS) if metric.name == name), None)


def kind_of_answer(value: object) -> str:
    """Return what a method of an objective returned, in words."""
    if isinstance(value, Tensor | np.ndarray):
        return f"an array of shape {tuple(value.shape)}"
    return type(value).__name__
