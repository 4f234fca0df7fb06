"""The table's operators that choose, join, weight and repeat the channels of planes.

=====  ====================================================================================
slots  channels, increasing, and -1 behind them: those of a weight that has active channels
       alone, and room for more
=====  ====================================================================================
"""

from mest_fed.runtime import rules_moves as rules
from mest_fed.runtime.kind import Attribute, Kind

_CHANNELS = {"channels": Attribute(int, 1)}
_FACTORS = {"factors": Attribute(int, 1, length=2)}

TABLE = (
    # Some channels, zeros for -1; and these among ``channels`` ones of zeros, with a bias for all
    Kind("take_channels(x, slots) -> y", {}, rules.channels("x", "y")),
    Kind("place_channels(x, slots, b?) -> y", _CHANNELS, rules.channels("y", "x")),
    # One behind the other on the second axis
    Kind("concat(a, b) -> c", {}, rules.concat("a", "b", "c")),
    Kind("concat_gradient(dc) -> da, db", {}, rules.concat("da", "db", "dc")),
    # One factor for each plane
    Kind("multiply_channels(x, s) -> y", {}, rules.of_planes("x", "s", "y"), (("y", "x"),)),
    Kind(
        "multiply_channels_gradient(x, s, dy) -> dx, ds",
        {},
        rules.of_planes("x", "s", "dy", "dx", "ds"),
        (("dx", "dy"), ("dx", "x")),
    ),
    Kind("upsample_nearest(x) -> y", _FACTORS, rules.upsample("x", "y")),
    Kind("upsample_nearest_gradient(dy) -> dx", _FACTORS, rules.upsample("dx", "dy")),
)
