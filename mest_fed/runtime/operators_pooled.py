"""The table's convolutions with a ReLU and the maxima of 2x2 windows behind them."""

from mest_fed.runtime import rules
from mest_fed.runtime.kind import Attribute, Kind

#: Stride 1 and no groups.
_PLAIN = {"stride": Attribute(int, 1, 1, length=2), "padding": Attribute(int, length=2)}
_POOLED_CONV = {**_PLAIN, "groups": Attribute(int, 1, 1)}
_POOLED_SPARSE_CONV = {
    **_PLAIN,
    "weight_shape": Attribute(int, 1, length=4),
    "rows": Attribute(int, 1),
}

TABLE = (
    Kind(
        "conv2d_relu_pool(x, w, b?) -> y, where",
        _POOLED_CONV,
        rules.pooled_convolution("w"),
        work=rules.pooled_work("y", "w", 1),
    ),
    Kind(
        "conv2d_relu_pool_gradient(x, w, where, dy) -> dw, db?, dx?",
        _POOLED_CONV,
        rules.pooled_convolution("w"),
        work=rules.pooled_work("dy", "w", 2),
    ),
    Kind(
        "sparse_conv2d_relu_pool(x, values, slots, b?) -> y, where",
        _POOLED_SPARSE_CONV,
        rules.pooled_convolution(values="values"),
        work=rules.pooled_work("y", "values", 1),
    ),
    Kind(
        "sparse_conv2d_relu_pool_gradient(x, values, slots, where, dy) -> dvalues, db?, dx?",
        _POOLED_SPARSE_CONV,
        rules.pooled_convolution(values="values"),
        work=rules.pooled_work("dy", "values", 2),
    ),
)
