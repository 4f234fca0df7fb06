"""The table's optimizers, which change parameters in place.

Those of linear layers compute the gradient, too, and never write it down.
"""

from mest_fed.runtime import rules
from mest_fed.runtime.kind import Attribute, Kind

_FLAG, _SHARE, _SMALL = Attribute(bool), Attribute(float, 0, 1), Attribute(float, 0, 1e6)
_SGD = {"weight_decay": _SMALL, "momentum": _SHARE, "nesterov": _FLAG}
_ADAM = {"beta1": _SHARE, "beta2": _SHARE, "epsilon": _SMALL, "weight_decay": _SMALL}
_SPARSE_LINEAR = {"weight_shape": Attribute(int, 1, length=2), "rows": Attribute(int, 1)}

TABLE = (
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
