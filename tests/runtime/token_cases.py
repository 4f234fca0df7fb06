"""Tokens: small cases beside what torch computes."""

import torch
from drawn import Case, Draw, Makes
from torch.nn import functional as F


def embedding(draw: Draw) -> Case:
    table, indices = draw.normal(5, 2), draw.rng.integers(0, 5, size=(2, 3))
    return Case(
        {"indices": indices, "table": table},
        lambda indices, table: {"y": F.embedding(indices, table)},
    )


def add_positions(draw: Draw) -> Case:
    inputs = {"x": draw.normal(2, draw.size(1, 3), 2), "table": draw.normal(draw.size(3, 4), 2)}
    return Case(inputs, lambda x, table: {"y": x + table[: x.shape[1]]})


def attention(draw: Draw) -> Case:
    heads, causal, length = draw.size(1, 2), draw.flag(), draw.size(1, 4)
    source = length if causal else draw.size(1, 4)
    features = heads * draw.size(1, 3)
    inputs = {"q": draw.normal(2, length, features)}
    inputs |= {name: draw.normal(2, source, features) for name in "kv"}

    def function(q, k, v):
        queries, keys, values = (it.unflatten(2, (heads, -1)).transpose(1, 2) for it in (q, k, v))
        y = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
        scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(length, source).triu(1).bool(), -torch.inf)
        return {"y": y.transpose(1, 2).flatten(2), "weights": scores.softmax(-1)}

    return Case(inputs, function, {"heads": heads, "causal": causal})


CASES: dict[str, Makes] = {
    "embedding": embedding,
    "add_positions": add_positions,
    "attention": attention,
}
