"""Checks of what an objective answers: before anything is trained, and in every batch."""

import math

import torch
from torch import Tensor

from mest_fed.described import one_line
from mest_fed.errors import InputError, NotFiniteError, ObjectiveError
from mest_fed.schema import Metric
from mest_fed.training.metrics import Metrics
from mest_fed.training.objective import RESERVED, Objective, kind_of_answer


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
            f"correct() returned {kind_of_answer(correct)} ({kind}); "
            f"allowed: None, or torch.bool of shape ({len(targets)},)"
        )
    return correct.cpu()
