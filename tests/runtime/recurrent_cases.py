"""Recurrent layers and moves of axes: small cases beside what torch computes."""

import torch
from drawn import Case, Draw, Makes
from torch import nn
from torch.func import functional_call


def recurrent(kind: type[nn.Module], gates: int, kept: str) -> Makes:
    """Return the cases of a layer whose input weight is the identity."""

    def case(draw: Draw) -> Case:
        hidden, length = draw.size(1, 4), draw.size(1, 4)
        width = gates * hidden
        inputs = {"x": draw.normal(draw.size(1, 3), length, width), "u": draw.normal(width, hidden)}
        if draw.flag():
            inputs["bias"] = draw.normal(width)
        layer = kind(width, hidden, batch_first=True).double()

        def function(x, u, bias=None):
            tensors = {
                "weight_ih_l0": torch.eye(width).double(),
                "weight_hh_l0": u,
                "bias_ih_l0": torch.zeros(width).double(),
                "bias_hh_l0": torch.zeros(width).double() if bias is None else bias,
            }
            y = functional_call(layer, tensors, x)[0]
            return {"y": y, **kept_of(kept, (x, u, bias, y), layer, tensors)}

        return Case(inputs, function)

    return case


def kept_of(kept, arrays, layer, tensors):
    """Compute gates and what is kept beside them from the hidden states, all positions at once."""
    x, u, bias, y = arrays
    before = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)
    share = before @ u.T if bias is None else before @ u.T + bias
    if kept == "cells":
        i, f, g, o = (x + share).chunk(4, -1)
        gates = torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -1)
        parts = [functional_call(layer, tensors, x[:, : t + 1])[1][1][0] for t in range(x.shape[1])]
        return {"gates": gates, "cells": torch.stack(parts, 1)}
    (r, z, n), (_, _, candidate) = x.chunk(3, -1), share.chunk(3, -1)
    r, z = (r + share.chunk(3, -1)[0]).sigmoid(), (z + share.chunk(3, -1)[1]).sigmoid()
    gates = torch.cat([r, z, (n + r * candidate).tanh()], -1)
    return {"gates": gates, "candidate": candidate}


def transpose(draw: Draw) -> Case:
    x = draw.normal(*(draw.size(1, 4) for _ in range(draw.size(1, 4))))
    axes = draw.size(0, x.ndim - 1), draw.size(0, x.ndim - 1)
    return Case({"x": x}, lambda x: {"y": x.transpose(*axes)}, {"axes": axes})


def select(draw: Draw) -> Case:
    x = draw.normal(*(draw.size(1, 4) for _ in range(draw.size(2, 4))))
    index = draw.size(0, x.shape[1] - 1)
    return Case({"x": x}, lambda x: {"y": x[:, index]}, {"index": index})


CASES: dict[str, Makes] = {
    "lstm": recurrent(nn.LSTM, 4, "cells"),
    "gru": recurrent(nn.GRU, 3, "candidate"),
    "transpose": transpose,
    "select": select,
}
