"""The table's operators on sequences: embeddings, attention, recurrent layers and moves of axes.

Recurrent layers take whole sequences, (n, length, features).

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

from mest_fed.runtime import rules
from mest_fed.runtime import rules_moves as moves
from mest_fed.runtime.kind import Attribute, Kind

_AXES = {"axes": Attribute(int, 0, 7, length=2)}
_INDEX = {"index": Attribute(int)}

_ATTENTION = {"heads": Attribute(int, 1), "causal": Attribute(bool)}

TABLE = (
    Kind("embedding(indices, table) -> y", {}, rules.embedding("y", "table")),
    Kind("embedding_gradient(indices, dy) -> dtable", {}, rules.embedding("dy", "dtable")),
    Kind("add_positions(x, table) -> y", {}, rules.positions, (("y", "x"),)),
    Kind("add_positions_gradient(dy) -> dtable", {}, rules.positions),
    Kind(
        "attention(q, k, v) -> y, weights",
        _ATTENTION,
        rules.attention,
        work=rules.attention_work(2),
    ),
    Kind(
        "attention_gradient(q, k, v, weights, dy) -> dq, dk, dv",
        _ATTENTION,
        rules.attention,
        work=rules.attention_work(4),
    ),
    Kind("transpose(x) -> y", _AXES, moves.transpose),
    # One position of the second axis
    Kind("select(x) -> y", _INDEX, moves.select("x", "y")),
    Kind("select_gradient(dy) -> dx", _INDEX, moves.select("dx", "dy")),
    Kind(
        "lstm(x, u, bias?) -> y, gates, cells",
        {},
        moves.recurrent(4, "cells"),
        (("gates", "x"),),
        work=moves.recurrent_work(1),
    ),
    Kind(
        "lstm_gradient(u, y, gates, cells, dy) -> dx, du, dbias?",
        {},
        moves.recurrent(4, "cells"),
        (("dx", "gates"),),
        work=moves.recurrent_work(2),
    ),
    Kind(
        "gru(x, u, bias?) -> y, gates, candidate",
        {},
        moves.recurrent(3, "candidate"),
        (("gates", "x"),),
        work=moves.recurrent_work(1),
    ),
    Kind(
        "gru_gradient(u, y, gates, candidate, dy) -> dx, du, dbias?",
        {},
        moves.recurrent(3, "candidate"),
        (("dx", "gates"),),
        work=moves.recurrent_work(2),
    ),
)
