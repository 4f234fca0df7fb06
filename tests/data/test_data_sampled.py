"""Examples drawn for each device by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.data import SampledPartitions
from mest_fed.errors import InputError

LABELS = np.arange(600) % 10


def sampled(num_partitions=50, size=40, seed=1, alpha=0.3, labels=LABELS):
    return SampledPartitions(labels, num_partitions, size, seed, alpha)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    share=st.floats(0, 1),
    alpha=st.sampled_from([1e-300, 1e-9, 0.01, 0.3, 1.0, 1e6]),
    seed=st.integers(0, 3),
)
def test_each_device_has_its_number_of_distinct_examples(labels, share, alpha, seed):
    size = max(1, round(share * len(labels)))
    parts = sampled(3, size, seed, alpha, np.array(labels))
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) == size
        assert (np.diff(part) > 0).all()
        assert part[0] >= 0
        assert part[-1] < len(labels)


def test_a_device_does_not_depend_on_the_others():
    few, many = sampled(3), sampled(10**9)
    assert len(many) == 10**9
    assert np.array_equal(few[2], many[2])
    assert np.array_equal(many[2], many[2])
    assert not np.array_equal(many[2], many[3])
    assert not np.array_equal(many[2], sampled(seed=2)[2])
    assert np.array_equal(few[-1], few[2])
    assert all(np.array_equal(*pair) for pair in zip(few[1:], [few[1], few[2]], strict=True))
    with pytest.raises(IndexError):
        few[3]


def shares(alpha):
    """Return the share of each class in each of 200 devices."""
    return np.array(
        [np.bincount(LABELS[part], minlength=10) / 40 for part in sampled(200, alpha=alpha)]
    )


def test_the_mix_is_dirichlet():
    # Of a symmetric Dirichlet mix of k classes, n draws have shares of mean 1/k and variance
    # (1/k) (1 - 1/k) (1/n + (1 - 1/n) / (k alpha + 1)).
    for alpha in (0.3, 2.0):
        found = shares(alpha)
        variance = 0.1 * 0.9 * (1 / 40 + (39 / 40) / (10 * alpha + 1))
        assert np.abs(found.mean(axis=0) - 0.1).max() < 4 * np.sqrt(variance / 200)
        assert found.var() == pytest.approx(variance, rel=0.1)


def test_a_tiny_alpha_gives_one_class():
    assert (shares(1e-9).max(axis=1) == 1).all()
    # A class of 3 is not enough for 5: the other class gives the rest.
    labels = np.array([0, 0, 0, 1, 1, 1])
    mixes = {tuple(labels[part]) for part in sampled(20, 5, alpha=1e-9, labels=labels)}
    assert mixes == {(0, 0, 0, 1, 1), (0, 0, 1, 1, 1)}


def test_classes_without_examples_do_not_matter():
    parts = sampled(20, 10, labels=np.where(LABELS > 5, 9, 2))
    assert all(len(part) == 10 for part in parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 601}, "data.examples_per_device = 601 is not allowed; allowed: 1 to 600"),
        ({"size": 0}, "data.examples_per_device = 0"),
        ({"alpha": 0.0}, "data.alpha = 0.0"),
        ({"alpha": float("nan")}, "data.alpha = nan"),
        ({"num_partitions": 0}, "fleet.devices = 0"),
    ],
)
def test_wrong_input_names_the_key(change, words):
    with pytest.raises(InputError) as error:
        sampled(**change)
    assert words in str(error.value)
