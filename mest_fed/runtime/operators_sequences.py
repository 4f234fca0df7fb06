"""The table's recurrent layers, over whole sequences (n, length, features), and moves of axes.

=========  ================================================================================
argument   what it holds
=========  ================================================================================
x          of a recurrent layer: the share that its input has in its gates, the input's bias
           included, (n, length, gates * hidden)
u, bias    the share that its hidden state has, as torch's ``weight_hh`` and ``bias_hh``
gates      after their functions: of an LSTM input, forget, cell, output; of a GRU reset,
           update, new
cells      the LSTM's cell state of each position
candidate  the hidden state's share of the GRU's new gate, before it is multiplied by reset
=========  ================================================================================

The state before the first position is zero.
"""

from mest_fed.runtime import rules_moves as rules
from mest_fed.runtime.kind import Attribute, Kind

_AXES = {"axes": Attribute(int, 0, 7, length=2)}
_INDEX = {"index": Attribute(int)}

TABLE = (
    Kind("transpose(x) -> y", _AXES, rules.transpose),
    # One position of the second axis
    Kind("select(x) -> y", _INDEX, rules.select("x", "y")),
    Kind("select_gradient(dy) -> dx", _INDEX, rules.select("dx", "dy")),
    Kind(
        "lstm(x, u, bias?) -> y, gates, cells",
        {},
        rules.recurrent(4, "cells"),
        (("gates", "x"),),
        work=rules.recurrent_work(1),
    ),
    Kind(
        "lstm_gradient(u, y, gates, cells, dy) -> dx, du, dbias?",
        {},
        rules.recurrent(4, "cells"),
        (("dx", "gates"),),
        work=rules.recurrent_work(2),
    ),
    Kind(
        "gru(x, u, bias?) -> y, gates, candidate",
        {},
        rules.recurrent(3, "candidate"),
        (("gates", "x"),),
        work=rules.recurrent_work(1),
    ),
    Kind(
        "gru_gradient(u, y, gates, candidate, dy) -> dx, du, dbias?",
        {},
        rules.recurrent(3, "candidate"),
        (("dx", "gates"),),
        work=rules.recurrent_work(2),
    ),
)
