"""Assignment of profiles to clients."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.devices import assign_devices
from mest_fed.errors import InputError
from mest_fed.rng import numpy_generator


def test_largest_remainder_by_hand():
    # Quotas of 10: a 1.43, b 2.86, c 5.71; floors 1, 2, 5; the two left go to b and c.
    mix = {"a": 1, "b": 2, "c": 4}
    assert Counter(assign_devices(mix, 10, 0)) == {"a": 1, "b": 3, "c": 6}


def test_ties_go_to_the_first_name():
    assert Counter(assign_devices({"z": 1, "b": 1}, 3, 0)) == {"b": 2, "z": 1}


def test_order_is_shuffled_by_the_seed_alone():
    mix = {"a": 1.0, "b": 1.0}
    first = list(assign_devices(mix, 40, 1))
    assert first == list(assign_devices(dict(reversed(mix.items())), 40, 1))
    assert first != list(assign_devices(mix, 40, 2))
    assert first != sorted(first)


@given(
    mix=st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1),
    num_devices=st.integers(1, 200),
    seed=st.integers(0, 5),
)
def test_counts_are_within_one_of_the_quota(mix, num_devices, seed):
    assigned = assign_devices(mix, num_devices, seed)
    assert len(assigned) == num_devices
    counts, total = Counter(assigned), sum(mix.values())
    assert assigned.counts == counts
    assert list(assigned.counts) == sorted(counts)
    assert set(counts) <= set(mix)
    for name, weight in mix.items():
        assert abs(counts[name] - weight / total * num_devices) < 1 + 1e-9


def test_a_shuffled_list_of_names_by_hand():
    assigned = assign_devices({"b": 2, "a": 1, "c": 1}, 8, 5)
    names = ["a", "a", "b", "b", "b", "b", "c", "c"]
    order = numpy_generator(5, "devices").permutation(8)
    assert list(assigned) == [names[index] for index in order]
    assert assigned[2:5] == list(assigned)[2:5]
    assert assigned[-1] == list(assigned)[-1]
    with pytest.raises(IndexError):
        assigned[8]


def test_a_client_takes_a_byte():
    assert assign_devices({"a": 1, "b": 3}, 1000, 0).codes.nbytes == 1000
    many = {f"{number:03}": 1.0 for number in range(257)}
    assert sorted(assign_devices(many, 257, 0)) == sorted(many)


@pytest.mark.parametrize(
    ("mix", "num_devices", "words"),
    [
        ({}, 3, "fleet.mix = {}"),
        ({"a": 0}, 3, "fleet.mix.a = 0"),
        ({"a": 1, "b": -2.0}, 3, "fleet.mix.b = -2.0"),
        ({"a": float("nan")}, 3, "fleet.mix.a = nan"),
        ({"a": 1}, 0, "fleet.devices = 0"),
    ],
)
def test_wrong_input(mix, num_devices, words):
    with pytest.raises(InputError) as error:
        assign_devices(mix, num_devices, 0)
    assert words in str(error.value)
