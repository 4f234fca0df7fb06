"""The table's further operators on planes: pooled convolutions, and moves of channels.

A pooled convolution has a ReLU and the maxima of 2x2 windows behind it. The others choose, join,
weight and repeat channels.

=====  ====================================================================================
slots  channels, increasing, and -1 behind them: those of a weight that has active channels
       alone, and room for more
=====  ====================================================================================
"""

from mest_fed.runtime import rules
from mest_fed.runtime import rules_moves as moves
from mest_fed.runtime.kind import Attribute, Kind

_CHANNELS = {"channels": Attribute(int, 1)}
_FACTORS = {"factors": Attribute(int, 1, length=2)}

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
    # Some channels, zeros for -1; and these among ``channels`` ones of zeros, with a bias for all
    Kind("take_channels(x, slots) -> y", {}, moves.channels("x", "y")),
    Kind("place_channels(x, slots, b?) -> y", _CHANNELS, moves.channels("y", "x")),
    # One behind the other on the second axis, and cut apart
    Kind("concat(a, b) -> c", {}, moves.concat("a", "b", "c")),
    Kind("concat_gradient(dc) -> da, db", {}, moves.concat("da", "db", "dc")),
    # One factor for each plane
    Kind("multiply_channels(x, s) -> y", {}, moves.of_planes("x", "s", "y"), (("y", "x"),)),
    Kind(
        "multiply_channels_gradient(x, s, dy) -> dx, ds",
        {},
        moves.of_planes("x", "s", "dy", "dx", "ds"),
        (("dx", "dy"), ("dx", "x")),
    ),
    Kind("upsample_nearest(x) -> y", _FACTORS, moves.upsample("x", "y")),
    Kind("upsample_nearest_gradient(dy) -> dx", _FACTORS, moves.upsample("dx", "dy")),
)
