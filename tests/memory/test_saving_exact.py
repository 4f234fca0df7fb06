"""Exact ways to save memory give the gradient of plain training, whatever the model."""

from functools import cache

import pytest
import torch
from saving_cases import EXACT_PAIRS, MODELS, train

#: float32 sums are taken in another order: 4e-8 measured over these cases.
FLOAT32 = 1e-6


@cache
def plain(case, dtype):
    return train(case, "none", "fp32", dtype=dtype)


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize(("recompute", "saved"), EXACT_PAIRS)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-10), (torch.float32, FLOAT32)])
def test_gradients_and_statistics_are_those_of_plain_training(case, recompute, saved, dtype, rel):
    expected, outcome = plain(case, dtype), train(case, recompute, saved, dtype=dtype)
    assert outcome.loss == pytest.approx(expected.loss, rel=rel)
    for name, gradient in expected.gradients.items():
        assert gradient is not None, name
        assert outcome.gradients[name] is not None, name
    assert outcome.away_from(expected) <= rel
    # Running statistics and num_batches_tracked were moved once, and as far.
    for name, buffer in expected.buffers.items():
        torch.testing.assert_close(outcome.buffers[name], buffer, rtol=rel, atol=rel, msg=name)


def test_the_cases_are_what_they_are_meant_to_be():
    for case in MODELS:
        outcome = plain(case, torch.float64)
        assert all(bool(gradient.any()) for gradient in outcome.gradients.values()), case
    counts = [b for n, b in plain("batch-block", torch.float64).buffers.items() if "tracked" in n]
    assert len(counts) == 9
    assert all(count == 1 for count in counts)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("recompute", "saved"), EXACT_PAIRS)
def test_one_image(norm, recompute, saved):
    expected = train(f"{norm}-block", "none", "fp32", count=1)
    assert train(f"{norm}-block", recompute, saved, count=1).away_from(expected) <= 1e-10
