"""The table's losses of numbers and labels, and what stands between gradients and updates.

A loss is ``share`` times the sum over rows of the mean over a row's numbers.
"""

from mest_fed.runtime import rules_moves as rules
from mest_fed.runtime.kind import Attribute, Kind

_POSITIVE = Attribute(float, 0, 1e6)
_NUMBERS = {"targets": "float32"}


def _loss(name: str, outputs: str) -> tuple[Kind, Kind]:
    """Return a loss of outputs against numbers, and its gradient."""
    return (
        Kind(
            f"{name}({outputs}, targets, share) -> loss",
            {},
            rules.loss(outputs),
            dtypes=_NUMBERS,
        ),
        Kind(
            f"{name}_gradient({outputs}, targets, share) -> d{outputs}",
            {},
            rules.loss(outputs),
            ((f"d{outputs}", outputs),),
            dtypes=_NUMBERS,
        ),
    )


TABLE = (
    *_loss("squared_error", "outputs"),
    *_loss("absolute_error", "outputs"),
    # of each difference d: d^2 / 2 up to 1, then |d| - 1/2
    *_loss("huber", "outputs"),
    # of the labels' logits
    *_loss("binary_cross_entropy", "logits"),
    # total = before + sum of squares
    Kind(
        "sum_of_squares(x, before?) -> total",
        {},
        rules.sum_of_squares,
        (("total", "before"),),
    ),
    # gradient * min(1, most / (sqrt(total) + 1e-6)), as torch's clip_grad_norm_
    Kind(
        "clip(gradient, total) -> y",
        {"most": _POSITIVE},
        rules.clip,
        (("y", "gradient"),),
    ),
    # gradient + strength * (parameter - reference), FedProx (Li et al. 2020)
    Kind(
        "proximal(gradient, parameter, reference) -> y",
        {"strength": _POSITIVE},
        rules.alike("gradient", "parameter", "reference", "y"),
        (("y", "gradient"),),
    ),
)
