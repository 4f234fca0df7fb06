"""The learning tasks by name: classification, next token, regression, several labels."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from inspect import signature

import torch
from torch import Tensor
from torch.nn import functional as F

from mest_fed.catalogue import TASKS
from mest_fed.errors import InputError, ObjectiveError, not_allowed
from mest_fed.schema import ACCURACY, Metric
from mest_fed.strict_json import parse_json
from mest_fed.training.objective import BatchSums, Objective, Sum


class Classification(Objective):
    """One class for each example: cross-entropy and accuracy.

    Outputs are logits of shape ``(n, classes)``, targets int64 of shape ``(n,)``.
    """

    metrics = (ACCURACY,)
    least_loss = 0.0

    def num_outputs(self, target_shape: tuple[int, ...], num_classes: int) -> int:
        """Return the number of classes."""
        if target_shape:
            shape = ", ".join(map(str, ("n", *target_shape)))
            raise InputError(
                f"targets of shape ({shape}) are no classes; allowed: (n,), or task.name = "
                "'regression', 'multi-label' or 'next-token'"
            )
        return num_classes

    def output_shapes(
        self, target_shape: tuple[int, ...], num_outputs: int
    ) -> Sequence[tuple[int, ...]]:
        """Return that of logits, as torch's cross-entropy takes them."""
        return [(num_outputs, *target_shape)]

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropies."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def total_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of cross-entropies, in one operator."""
        return F.cross_entropy(outputs, targets, reduction="sum")

    def sums(self, outputs: Tensor, targets: Tensor) -> BatchSums:
        """Count the right answers."""
        return {"correct": self.correct(outputs, targets).sum()}

    def values(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """Return the share of right answers."""
        return {"accuracy": float(sums["correct"]) / float(sums["count"])}

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Say where the largest logit is that of the class."""
        return outputs.argmax(dim=1) == targets


class NextToken(Objective):
    """The next token at each place of a sequence: perplexity and accuracy over tokens.

    Outputs are logits of shape ``(n, length, vocabulary)``, targets int64 of shape
    ``(n, length)``: at each place the token that follows. A batch counts its tokens, so that each
    token weighs the same in long and short examples.

    Parameters
    ----------
    ignore : int
        A target that does not count, such as padding.
    correct_share : float
        Share of an example's tokens that must be right for the example to be correct.
    """

    metrics = (Metric("perplexity", higher_is_better=False), ACCURACY)
    least_loss = 0.0

    def __init__(self, ignore: int = -100, correct_share: float = 0.5) -> None:
        if not 0 < correct_share <= 1:
            raise not_allowed("task.options.correct_share", correct_share, "a number in (0, 1]")
        self.ignore = ignore
        self.correct_share = correct_share

    def output_shapes(
        self, target_shape: tuple[int, ...], num_outputs: int
    ) -> Sequence[tuple[int, ...]]:
        """Return that of logits at each place."""
        return [(*target_shape, num_outputs)]

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of each example's cross-entropies."""
        _check_tokens(outputs, targets)
        flat = F.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=self.ignore
        )
        return flat.view(targets.shape).sum(1)

    def count(self, targets: Tensor) -> int:
        """Count the tokens."""
        return int((targets != self.ignore).sum())

    def sums(self, outputs: Tensor, targets: Tensor) -> BatchSums:
        """Count the tokens that are right."""
        return {"correct": self._right(outputs, targets).sum()}

    def values(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """Return exp(mean loss), and the share of tokens that are right."""
        loss, count = torch.tensor(float(sums["loss"])).double(), float(sums["count"])
        return {
            "perplexity": float((loss / count).exp()),
            "accuracy": float(sums["correct"]) / count,
        }

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Say which examples have enough tokens right."""
        counted = (targets != self.ignore).sum(1)
        return self._right(outputs, targets).sum(1) >= self.correct_share * counted

    def _right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(dim=-1) == targets) & (targets != self.ignore)


def _check_tokens(outputs: Tensor, targets: Tensor) -> None:
    if targets.dim() != 2 or outputs.shape[:-1] != targets.shape or outputs.dim() != 3:
        raise ObjectiveError(
            f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} are not of a "
            "next-token task; allowed: (n, length, vocabulary) and (n, length)"
        )


REGRESSION_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}


class Regression(Objective):
    """Numbers for each example: mean squared and mean absolute error.

    Outputs and targets have one shape ``(n, ...)``; ``(n, 1)`` and ``(n,)`` go together. An
    example's loss and errors are means over its numbers.

    Parameters
    ----------
    loss : {"mse", "mae", "huber"}
        What is minimised.
    tolerance : float
        Largest absolute error with which an example counts as correct; 0 tells of no example.
    """

    metrics = (Metric("mse", higher_is_better=False), Metric("mae", higher_is_better=False))
    least_loss = 0.0
    targets_are_numbers = True

    def __init__(self, loss: str = "mse", tolerance: float = 0.0) -> None:
        if loss not in REGRESSION_LOSSES:
            raise not_allowed("task.options.loss", loss, REGRESSION_LOSSES)
        if not tolerance >= 0:
            raise not_allowed("task.options.tolerance", tolerance, "a number from 0")
        self.loss = loss
        self.tolerance = tolerance

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over each example's numbers."""
        given, wanted = _aligned(outputs, targets)
        return REGRESSION_LOSSES[self.loss](given, wanted, reduction="none").mean(1)

    def sums(self, outputs: Tensor, targets: Tensor) -> BatchSums:
        """Add up squared and absolute errors."""
        given, wanted = _aligned(outputs, targets)
        error = given.double() - wanted.double()
        return {"squared": error.square().mean(1).sum(), "absolute": error.abs().mean(1).sum()}

    def values(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """Return mean errors."""
        count = float(sums["count"])
        return {"mse": float(sums["squared"]) / count, "mae": float(sums["absolute"]) / count}

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Say which examples are within the tolerance in all their numbers."""
        if self.tolerance == 0:
            return None
        given, wanted = _aligned(outputs, targets)
        return ((given - wanted).abs() <= self.tolerance).all(1)

    def num_outputs(self, target_shape: tuple[int, ...], num_classes: int) -> int:
        """Return the numbers of an example."""
        return math.prod(target_shape)

    def output_shapes(
        self, target_shape: tuple[int, ...], num_outputs: int
    ) -> Sequence[tuple[int, ...]]:
        """Return the target's, or that of its numbers in a row."""
        return _shapes_aligned(target_shape)


class MultiLabel(Objective):
    """Any number of labels for each example: binary cross-entropy, label accuracy and F1.

    Outputs are logits and targets 0 or 1 (or shares in between), both of shape ``(n, labels)``. An
    example's loss is the mean over its labels. F1 is over all labels together (micro).

    Parameters
    ----------
    threshold : float
        Probability from which on a label is given.
    """

    metrics = (
        Metric("f1", higher_is_better=True, share=True),
        Metric("label-accuracy", higher_is_better=True, share=True),
    )
    least_loss = 0.0
    targets_are_numbers = True

    def __init__(self, threshold: float = 0.5) -> None:
        if not 0 < threshold < 1:
            raise not_allowed("task.options.threshold", threshold, "a number in (0, 1)")
        self.threshold = threshold

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of each example's labels."""
        given, wanted = _aligned(outputs, targets)
        return F.binary_cross_entropy_with_logits(given, wanted, reduction="none").mean(1)

    def sums(self, outputs: Tensor, targets: Tensor) -> BatchSums:
        """Count labels: right ones, given and true ones, given or true ones."""
        given, true = self._labels(outputs, targets)
        return {
            "right": (given == true).double().mean(1).sum(),
            "both": (given & true).sum(),
            "either": given.sum() + true.sum(),
        }

    def values(self, sums: Mapping[str, Sum]) -> Mapping[str, float]:
        """Return F1 (1 where no label is given or true) and the share of right labels."""
        either = float(sums["either"])
        return {
            "f1": 2 * float(sums["both"]) / either if either else 1.0,
            "label-accuracy": float(sums["right"]) / float(sums["count"]),
        }

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Say which examples have all labels right."""
        given, true = self._labels(outputs, targets)
        return (given == true).all(1)

    def num_outputs(self, target_shape: tuple[int, ...], num_classes: int) -> int:
        """Return the number of labels."""
        if len(target_shape) != 1:
            raise InputError(
                f"targets of {len(target_shape) + 1} dimensions are not of a multi-label task; "
                "allowed: (n, labels)"
            )
        return target_shape[0]

    def output_shapes(
        self, target_shape: tuple[int, ...], num_outputs: int
    ) -> Sequence[tuple[int, ...]]:
        """Return that of a row of labels."""
        return _shapes_aligned(target_shape)

    def _labels(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        given, wanted = _aligned(outputs, targets)
        return given.sigmoid() >= self.threshold, wanted >= 0.5


def _shapes_aligned(target_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of an example's outputs that go with its targets; see :func:`_aligned`."""
    count = math.prod(target_shape)
    return list(dict.fromkeys([target_shape, (count,), *([()] if count == 1 else [])]))


def _aligned(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as ``(n, numbers)``, the targets in the type of the outputs."""
    if outputs.numel() != targets.numel() or len(outputs) != len(targets):
        raise ObjectiveError(
            f"outputs {tuple(outputs.shape)} do not go with targets {tuple(targets.shape)}; "
            "allowed: as many outputs as targets"
        )
    count = len(targets)
    return outputs.reshape(count, -1), targets.reshape(count, -1).to(outputs.dtype)


@lru_cache(maxsize=8)
def objective_of(name: str, options: str = "") -> Objective:
    """Return this process's learning task of a name.

    Parameters
    ----------
    name : str
        A name of :data:`~mest_fed.catalogue.TASKS`, or the reference of a class of one's own.
    options : str
        Arguments of the class as a JSON object, as the configuration holds them; empty for none.

    Raises
    ------
    InputError
        If the name is unknown, or an option is not allowed.
    """
    arguments = parse_json(options or "{}", "task.options", dict)
    task = TASKS.find(name)
    try:
        signature(task).bind(**arguments)
    except TypeError as error:
        raise InputError(f"task.options = {arguments!r} is not allowed; {error}") from None
    objective: Objective = TASKS.call(name, task, **arguments)
    return objective
