"""What a model learns: the loss of each example, metrics with a direction, what counts as correct.

An :class:`Objective` is one learning task. A task of one's own is a subclass with ``metrics``,
:meth:`~Objective.losses`, :meth:`~Objective.sums` and :meth:`~Objective.values`; the configuration
names it as ``task.name = "file.py:Task"``. ``docs/tasks.md`` has an example.

A metric is computed from sums over examples. Sums of batches, devices and rounds add up, so that a
metric over a fleet is exactly the metric over all its examples.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mest_fed.described import one_line
from mest_fed.errors import InputError, NotFiniteError, ObjectiveError
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
            raise ObjectiveError(f"losses() returned {_kind(losses)}; allowed: a tensor of (n,)")
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


def _as_sum(name: str, value: object) -> Sum:
    if not name.isidentifier() or name in RESERVED:
        raise ObjectiveError(
            f"sums() returned {name!r}; allowed: identifiers, not {', '.join(RESERVED)}"
        )
    array = value.detach().double().cpu().numpy() if isinstance(value, Tensor) else value
    if not isinstance(array, np.ndarray | int | float | np.number) or np.ndim(array) > 1:
        raise ObjectiveError(
            f"sums() returned {name} as {_kind(value)}; allowed: a number, or a vector of numbers"
        )
    return float(array) if np.ndim(array) == 0 else np.asarray(array, dtype=np.float64)


def _as_number(metric: Metric, value: object) -> float:
    number = value
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        number = value.item()
    if not isinstance(number, int | float | np.number):
        raise ObjectiveError(f"values() returned {metric.name} as {_kind(value)}; not a number")
    if metric.share and not (math.isnan(number) or -1e-6 <= number <= 1 + 1e-6):
        raise ObjectiveError(f"{metric.name} = {number:g}; allowed: a share in [0, 1]")
    return float(min(max(number, 0.0), 1.0)) if metric.share else float(number)


def _kind(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"an array of shape {tuple(value.shape)}"
    return type(value).__name__


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


def judge_correct(objective: Objective, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return which examples are correct, on the CPU.

    Raises
    ------
    ObjectiveError
        If the objective does not tell, or not for each example.
    """
    correct = objective.correct(outputs, targets)
    if correct is None:
        raise ObjectiveError("correct() returned None; forgetting needs to know what is correct")
    if (
        not isinstance(correct, Tensor)
        or correct.dtype != torch.bool
        or correct.shape != targets.shape[:1]
    ):
        kind = correct.dtype if isinstance(correct, Tensor) else "no tensor"
        raise ObjectiveError(
            f"correct() returned {_kind(correct)} ({kind}); "
            f"allowed: None, or torch.bool of shape ({len(targets)},)"
        )
    return correct.cpu()


def check_finite(loss: float, objective: Objective, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a loss that is not finite; name the first example in the batch whose loss is not.

    Raises
    ------
    NotFiniteError
        If it is not.
    """
    if math.isfinite(loss):
        return
    if not bool(outputs.isfinite().all()):
        raise NotFiniteError(f"the loss is {loss} because the model's outputs are not finite")
    with torch.no_grad():
        losses = objective.losses(outputs, targets)
    wrong = torch.nonzero(~losses.isfinite()).flatten().tolist()
    where = f" for example {wrong[0]} of the batch" if wrong else ""
    raise NotFiniteError(f"losses() returned {loss}{where}; allowed: finite numbers")


def try_objective(objective: Objective, outputs: Tensor, targets: Tensor, *, key: str) -> Metrics:
    """Try an objective on a small batch, before anything is trained.

    Parameters
    ----------
    objective : Objective
        What to try.
    outputs, targets : Tensor
        Of a few examples.
    key : str
        What named the objective, for the error: ``task.name = 'file.py:Task'``.

    Returns
    -------
    Metrics
        Of the batch.

    Raises
    ------
    InputError
        If a method raises, or returns what it must not; one line that says which.
    """
    totals = Metrics()
    try:
        check_metrics(objective)
        outputs = outputs.detach().requires_grad_()
        total = objective.total_loss(outputs, targets)
        check_finite(total.item(), objective, outputs.detach(), targets)
        if not total.requires_grad:
            raise ObjectiveError("losses() does not depend on outputs: it has no gradient")
        total.backward()  # type: ignore[no-untyped-call]
        sums = objective.sums(outputs.detach(), targets)
        totals.add(total.item(), targets, objective, sums)
        if totals.count < 1:
            raise ObjectiveError(f"count() returned {totals.count}; allowed: a positive number")
        totals.values(objective)
        if objective.correct(outputs.detach(), targets) is not None:
            judge_correct(objective, outputs.detach(), targets)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    except Exception as error:  # a task of one's own may raise anything
        raise InputError(
            f"{key}: {type(error).__name__}: {one_line(error)} "
            f"(outputs {tuple(outputs.shape)}, targets {tuple(targets.shape)} {targets.dtype})"
        ) from error
    return totals


def check_metrics(objective: Objective) -> None:
    """Check that an objective's metrics have names of their own.

    Raises
    ------
    ObjectiveError
        If they are not metrics, or a name is taken twice or reserved.
    """
    names: list[str] = []
    for metric in objective.metrics:
        if not isinstance(metric, Metric):
            raise ObjectiveError(f"metrics holds {metric!r}; allowed: Metric(name, ...)")
        words = metric.name.replace("-", "").replace("_", "")
        if not (words.isalnum() and words.isascii()) or metric.name in (*names, *RESERVED):
            raise ObjectiveError(
                f"the metric {metric.name!r} is not allowed; allowed: letters, digits and hyphens, "
                f"each name once, not {' or '.join(RESERVED)}"
            )
        names.append(metric.name)
