"""Formats of fewer bits: how far the gradient is from the exact one, and in which order.

Where nothing is run again, an error is that of rounding. Where segments are, signs before ReLUs
flip too, and each flip takes a whole term away: noise of a few percent even at 16 bits.
"""

from functools import cache

import pytest
import torch
from saving_cases import INEXACT_PAIRS, MODELS, backward, data, resnet, train

from mest_fed.memory import RECOMPUTE, MemoryOptions

#: About twice the largest relative error of the whole gradient that was measured over the cases.
ROUNDED = {"fp16": 1e-3, "bf16": 0.02, "int8": 0.08}
RUN_AGAIN = {"fp16": 0.06, "bf16": 0.08, "int8": 0.13}


@cache
def plain(case):
    return train(case, "none", "fp32", dtype=torch.float32)


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize(("recompute", "saved"), INEXACT_PAIRS)
def test_the_gradient_is_near_the_exact_one(case, recompute, saved):
    outcome = train(case, recompute, saved, dtype=torch.float32)
    bound = (RUN_AGAIN if recompute == "segments" else ROUNDED)[saved]
    assert 0 < outcome.away_from(plain(case)) < bound
    assert all(gradient is not None for gradient in outcome.gradients.values())
    # The forward pass sees nothing of a format.
    assert outcome.loss == pytest.approx(plain(case).loss, rel=1e-6)
    for name, buffer in plain(case).buffers.items():
        torch.testing.assert_close(outcome.buffers[name], buffer, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_more_bits_are_nearer(recompute, norm):
    batch = data(32, (1, 16, 16), torch.float32)

    def outcome(recompute, saved):
        net = resnet("unstructured", norm, width=0.5, image=(1, 16, 16))
        return backward(net, MemoryOptions(recompute, saved), batch)

    exact = outcome("none", "fp32")
    errors = {
        saved: outcome(recompute, saved).away_from(exact) for saved in ("fp16", "bf16", "int8")
    }
    assert errors["fp16"] < errors["bf16"]
    assert errors["fp16"] < errors["int8"]
