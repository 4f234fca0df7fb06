"""What a node counts of its answers, by task: the sums that torch's objectives would report.

The gradients of a task are in its program; here are the numbers that people read. Each has the
formulas of its namesake in :mod:`mest_fed.training.tasks`, and a test compares the two.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.errors import InputError, not_allowed

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
Sums = dict[str, float]


class Scores(ABC):
    """What is counted of a learning task."""

    @abstractmethod
    def losses(self, outputs: Array, targets: Array) -> Array:
        """Return the loss of each example, shape ``(n,)``, float64."""

    @abstractmethod
    def sums(self, outputs: Array, targets: Array) -> Sums:
        """Return sums over a batch by name."""

    @abstractmethod
    def correct(self, outputs: Array, targets: Array) -> Flags | None:
        """Return which examples are answered correctly; None where the task does not tell."""

    def count(self, targets: Array) -> float:
        """Return what a batch counts in the mean loss."""
        return len(targets)

    def counted(self, targets: Array) -> Array:
        """Return targets in which those that do not count are negative, as in programs."""
        return targets


class ClassScores(Scores):
    """Cross-entropy and right answers."""

    def losses(self, outputs: Array, targets: Array) -> Array:
        """Return cross-entropies."""
        return _cross_entropy(outputs, targets)

    def sums(self, outputs: Array, targets: Array) -> Sums:
        """Count the right answers."""
        return {"correct": float(self.correct(outputs, targets).sum())}

    def correct(self, outputs: Array, targets: Array) -> Flags:
        """Say where the largest logit is that of the class."""
        right: Flags = outputs.argmax(axis=1) == targets
        return right


class TokenScores(Scores):
    """Cross-entropy and right tokens; see :class:`~mest_fed.training.tasks.NextToken`."""

    def __init__(self, ignore: int = -100, correct_share: float = 0.5) -> None:
        self._ignore, self._share = ignore, correct_share

    def losses(self, outputs: Array, targets: Array) -> Array:
        """Return the sum of each example's cross-entropies."""
        counted = targets != self._ignore
        each = _cross_entropy(outputs, np.where(counted, targets, 0))
        total: Array = np.where(counted, each, 0.0).sum(axis=1)
        return total

    def count(self, targets: Array) -> float:
        """Count the tokens."""
        return int((targets != self._ignore).sum())

    def counted(self, targets: Array) -> Array:
        """Return targets in which those that do not count are -1."""
        return np.where(targets != self._ignore, targets, -1)

    def sums(self, outputs: Array, targets: Array) -> Sums:
        """Count the tokens that are right."""
        return {"correct": float(self._right(outputs, targets).sum())}

    def correct(self, outputs: Array, targets: Array) -> Flags:
        """Say which examples have enough tokens right."""
        counted = (targets != self._ignore).sum(axis=1)
        enough: Flags = self._right(outputs, targets).sum(axis=1) >= self._share * counted
        return enough

    def _right(self, outputs: Array, targets: Array) -> Flags:
        right: Flags = (outputs.argmax(axis=-1) == targets) & (targets != self._ignore)
        return right


class NumberScores(Scores):
    """Errors of numbers; see :class:`~mest_fed.training.tasks.Regression`."""

    def __init__(self, loss: str = "mse", tolerance: float = 0.0) -> None:
        if loss not in _ERRORS:
            raise not_allowed("loss of the task", loss, _ERRORS)
        self._loss, self._tolerance = _ERRORS[loss], tolerance

    def losses(self, outputs: Array, targets: Array) -> Array:
        """Return the mean loss over each example's numbers."""
        means: Array = self._loss(_errors(outputs, targets)).mean(axis=1)
        return means

    def sums(self, outputs: Array, targets: Array) -> Sums:
        """Add up squared and absolute errors."""
        error = _errors(outputs, targets)
        means = {"squared": (error**2).mean(axis=1), "absolute": np.abs(error).mean(axis=1)}
        return {name: float(each.sum()) for name, each in means.items()}

    def correct(self, outputs: Array, targets: Array) -> Flags | None:
        """Say which examples are within the tolerance in all their numbers."""
        if self._tolerance == 0:
            return None
        near = np.abs(_errors(outputs, targets)) <= self._tolerance
        return _all(near)


class LabelScores(Scores):
    """Labels given and true; see :class:`~mest_fed.training.tasks.MultiLabel`."""

    def __init__(self, threshold: float = 0.5) -> None:
        self._threshold = threshold

    def losses(self, outputs: Array, targets: Array) -> Array:
        """Return the mean binary cross-entropy of each example's labels."""
        x, y = _rows(outputs), _rows(targets)
        means: Array = (np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))).mean(axis=1)
        return means

    def sums(self, outputs: Array, targets: Array) -> Sums:
        """Count labels: right ones, given and true ones, given or true ones."""
        given, true = self._labels(outputs, targets)
        return {
            "right": float((given == true).mean(axis=1).sum()),
            "both": float((given & true).sum()),
            "either": float(given.sum() + true.sum()),
        }

    def correct(self, outputs: Array, targets: Array) -> Flags:
        """Say which examples have all labels right."""
        given, true = self._labels(outputs, targets)
        return _all(np.equal(given, true))

    def _labels(self, outputs: Array, targets: Array) -> tuple[Flags, Flags]:
        given = np.greater_equal(1 / (1 + np.exp(-_rows(outputs))), self._threshold)
        true = np.greater_equal(_rows(targets), 0.5)
        return given, true


def _all(flags: Array) -> Flags:
    rows = flags.reshape(len(flags), -1)
    every: Flags = np.logical_and.reduce(rows, axis=1)
    return every


def _cross_entropy(outputs: Array, targets: Array) -> Array:
    """Return -log softmax at the targets, over the last axis."""
    logits = outputs.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    at = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses: Array = np.log(np.exp(logits).sum(axis=-1)) - at
    return losses


def _rows(numbers: Array) -> Array:
    return numbers.reshape(len(numbers), -1).astype(np.float64)


def _errors(outputs: Array, targets: Array) -> Array:
    errors: Array = _rows(outputs) - _rows(targets)
    return errors


def _huber(error: Array) -> Array:
    size = np.abs(error)
    return np.where(size < 1, 0.5 * error**2, size - 0.5)


_ERRORS: dict[str, Callable[[Array], Array]] = {
    "mse": np.square,
    "mae": np.abs,
    "huber": _huber,
}
_SCORES: dict[str, Callable[..., Scores]] = {
    "classification": ClassScores,
    "next-token": TokenScores,
    "regression": NumberScores,
    "multi-label": LabelScores,
}


def scores_of(task: str, options: Mapping[str, Any]) -> Scores:
    """Return what is counted of a task.

    Raises
    ------
    InputError
        If nodes cannot count it, as a task of a user's own.
    """
    if task not in _SCORES:
        raise not_allowed("task.name", task, f"for a lean node: {', '.join(_SCORES)}")
    try:
        return _SCORES[task](**options)
    except TypeError as error:
        raise InputError(f"task.options of a lean node: {error}") from None
