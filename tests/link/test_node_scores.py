"""A lean node counts what torch's learning tasks count."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mest_fed.catalogue import TASKS
from mest_fed.errors import InputError
from mest_fed.link.node.scores import scores_of

CASES = {
    "classification": [{}],
    "next-token": [{}, {"ignore": 2}, {"correct_share": 0.8}],
    "regression": [
        {"loss": loss, "tolerance": tolerance}
        for loss in ("mse", "mae", "huber")
        for tolerance in (0.0, 0.7)
    ],
    "multi-label": [{}, {"threshold": 0.3}],
}
ALL = [(name, options) for name, each in CASES.items() for options in each]


def batch(name, rng, count, length, ignore):
    """Return outputs and targets as a model and a data set give them."""
    classes = 4
    size = 10 ** rng.uniform(-2, 1.5)
    if name == "classification":
        return rng.normal(0, size, (count, classes)), rng.integers(0, classes, count)
    if name == "next-token":
        targets = rng.integers(0, classes, (count, length))
        targets[rng.random(targets.shape) < 0.3] = ignore
        return rng.normal(0, size, (count, length, classes)), targets
    outputs = rng.normal(0, size, (count, length))
    if name == "regression":
        return outputs, (outputs + rng.normal(0, 0.5, outputs.shape)).astype(np.float32)
    return outputs, rng.integers(0, 2, (count, length)).astype(np.float32)


@pytest.mark.parametrize(("name", "options"), ALL)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 9), length=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_a_batch_counts_as_with_torch(name, options, seed, count, length):
    rng = np.random.default_rng(seed)
    outputs, targets = batch(name, rng, count, length, options.get("ignore", -100))
    outputs = outputs.astype(np.float32)
    scores, objective = scores_of(name, options), TASKS.build(name, **options)
    given_, true = torch.from_numpy(outputs), torch.from_numpy(targets)
    theirs = objective.losses(given_, true).double().numpy()
    assert scores.losses(outputs, targets) == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert scores.count(targets) == objective.count(true)
    sums = {key: float(value) for key, value in objective.sums(given_, true).items()}
    assert scores.sums(outputs, targets) == pytest.approx(sums, rel=1e-4, abs=1e-5)
    right, expected = scores.correct(outputs, targets), objective.correct(given_, true)
    assert (right is None) == (expected is None)
    if right is not None:
        assert right.tolist() == expected.tolist()


def test_targets_that_do_not_count_are_negative_for_programs():
    targets = np.array([[3, 2, 1]])
    assert scores_of("next-token", {"ignore": 2}).counted(targets).tolist() == [[3, -1, 1]]
    assert scores_of("classification", {}).counted(targets) is targets


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("file.py:Own", {}, "task.name = 'file.py:Own' is not allowed; allowed: for a lean node"),
        ("regression", {"loss": "l7"}, "l7"),
        ("regression", {"twice": 1}, "task.options of a lean node"),
    ],
)
def test_what_a_node_cannot_count_is_one_line(name, options, text):
    with pytest.raises(InputError) as raised:
        scores_of(name, options)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)
