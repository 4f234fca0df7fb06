"""The table's operators of training: losses, what is done to gradients, and optimizers.

A loss is ``share`` times the sum over rows: of classes, of the target's cross entropy; of numbers
and labels, of the mean over a row's numbers. An optimizer changes parameters in place; those of
linear layers compute the gradient, too, and never write it down.
"""

from mest_fed.runtime import rules
from mest_fed.runtime import rules_moves as moves
from mest_fed.runtime.kind import Attribute, Kind

_FLAG, _SHARE, _SMALL = Attribute(bool), Attribute(float, 0, 1), Attribute(float, 0, 1e6)
_SGD = {"weight_decay": _SMALL, "momentum": _SHARE, "nesterov": _FLAG}
_ADAM = {"beta1": _SHARE, "beta2": _SHARE, "epsilon": _SMALL, "weight_decay": _SMALL}
_SPARSE_LINEAR = {"weight_shape": Attribute(int, 1, length=2), "rows": Attribute(int, 1)}
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
    Kind(
        "sgd(gradient, rates, parameter, momentum_buffer?) ->",
        _SGD,
        rules.update,
        changes=("parameter", "momentum_buffer"),
    ),
    Kind(
        "linear_sgd(x, dy, rates, w, momentum_buffer?) -> dx?",
        _SGD,
        rules.linear_update("w"),
        changes=("w", "momentum_buffer"),
        work=rules.linear_update_work("w"),
    ),
    Kind(
        "sparse_linear_sgd(x, slots, dy, rates, values, momentum_buffer?) -> dx?",
        {**_SPARSE_LINEAR, **_SGD},
        rules.linear_update(values="values"),
        changes=("values", "momentum_buffer"),
        work=rules.linear_update_work("values"),
    ),
    Kind(
        "adam(gradient, rates, parameter, first, second, step) ->",
        {**_ADAM, "decoupled": _FLAG},
        rules.update,
        changes=("parameter", "first", "second", "step"),
    ),
)
