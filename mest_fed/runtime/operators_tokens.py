"""The table's operators on tokens: embeddings and attention."""

from mest_fed.runtime import rules
from mest_fed.runtime.kind import Attribute, Kind

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
)
