"""The table's losses, and what stands between gradients and updates.

A loss is ``share`` times the sum over rows: of classes, of the target's cross entropy; of numbers
and labels, of the mean over a row's numbers.
"""

from mest_fed.runtime import rules
from mest_fed.runtime import rules_moves as moves
from mest_fed.runtime.kind import Attribute, Kind

_POSITIVE = Attribute(float, 0, 1e6)
_NUMBERS = {"targets": "float32"}


def _loss(name: str, outputs: str) -> tuple[Kind, Kind]:
    """Return a loss of outputs against numbers, and its gradient."""
    return (
        Kind(
            f"{name}({outputs}, targets, share) -> loss",
            {},
            moves.loss(outputs),
            dtypes=_NUMBERS,
        ),
        Kind(
            f"{name}_gradient({outputs}, targets, share) -> d{outputs}",
            {},
            moves.loss(outputs),
            ((f"d{outputs}", outputs),),
            dtypes=_NUMBERS,
        ),
    )


TABLE = (
    Kind(
        "cross_entropy(logits, targets, share) -> loss, probabilities",
        {},
        rules.cross_entropy("logits", "probabilities"),
        (("probabilities", "logits"),),
    ),
    Kind(
        "cross_entropy_gradient(probabilities, targets, share) -> dlogits",
        {},
        rules.cross_entropy("probabilities", "dlogits"),
        (("dlogits", "probabilities"),),
    ),
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
        moves.sum_of_squares,
        (("total", "before"),),
    ),
    # gradient * min(1, most / (sqrt(total) + 1e-6)), as torch's clip_grad_norm_
    Kind(
        "clip(gradient, total) -> y",
        {"most": _POSITIVE},
        moves.clip,
        (("y", "gradient"),),
    ),
    # gradient + strength * (parameter - reference), FedProx (Li et al. 2020)
    Kind(
        "proximal(gradient, parameter, reference) -> y",
        {"strength": _POSITIVE},
        moves.alike("gradient", "parameter", "reference", "y"),
        (("y", "gradient"),),
    ),
)
