"""Forgetting events after Toneva et al. 2019, and which examples are left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mest_fed.errors import InputError
from mest_fed.training import ForgettingPolicy, ForgettingState

RIGHT, WRONG = True, False


def observed(*presentations):
    """Return the state after presentations of all examples, one list of outcomes each."""
    state = ForgettingState.fresh(len(presentations[0]))
    for outcomes in presentations:
        state.observe(np.arange(len(outcomes)), np.array(outcomes))
    return state


def of_histories(*histories):
    """Return the state of examples with the given histories, such as "001011"."""
    return observed(
        *([outcome == "1" for outcome in time] for time in zip(*histories, strict=True))
    )


@pytest.mark.parametrize(
    ("history", "events", "learned"),
    [
        ("000000", 0, False),  # never learned
        ("000001", 0, True),  # unforgettable, however late it was learned
        ("111111", 0, True),
        ("100000", 1, True),
        ("101010", 3, True),
        ("110110", 2, True),
        ("010011", 1, True),
    ],
)
def test_events_are_changes_from_right_to_wrong(history, events, learned):
    state = of_histories(history)
    assert state.counts.tolist() == [events]
    assert state.learned.tolist() == [learned]
    assert not state.removed.any()


@settings(deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=20)
    )
)
def test_counts_are_those_of_the_definition(presentations):
    state = observed(*presentations)
    history = np.array(presentations)
    assert state.counts.tolist() == (history[:-1] & ~history[1:]).sum(axis=0).tolist()
    assert state.learned.tolist() == history.any(axis=0).tolist()


def test_examples_are_observed_in_any_order_and_number():
    state = ForgettingState.fresh(4)
    state.observe(np.array([3, 1]), np.array([RIGHT, RIGHT]))
    state.observe(np.array([1]), np.array([WRONG]))
    assert state.counts.tolist() == [0, 1, 0, 0]
    assert state.learned.tolist() == [False, True, False, True]


def test_counts_saturate_and_never_mean_removed():
    state = ForgettingState.fresh(1)
    for presentation in range(600):
        state.observe(np.array([0]), np.array([presentation % 2 == 0]))
    assert state.counts.tolist() == [126]
    assert not state.removed.any()


def test_one_byte_an_example():
    state = ForgettingState.fresh(1000)
    assert state.codes.nbytes == 1000
    state.observe(np.arange(1000), np.ones(1000, bool))
    state.remove(0.5)
    assert (state.codes.dtype, state.codes.nbytes) == (np.uint8, 1000)


def test_the_least_forgotten_go_first_and_ties_to_the_lower_index():
    state = of_histories("1010", "1111", "0101", "0011", "1011")  # events 2, 0, 1, 0, 1
    assert state.remove(0.6) == 3
    assert state.removed.tolist() == [False, True, True, True, False]
    assert state.kept().tolist() == [0, 4]


def test_what_was_never_learned_stays():
    state = of_histories("000", "111", "000", "101")
    assert state.remove(0.9) == 2
    assert state.kept().tolist() == [0, 2]


@pytest.mark.parametrize(
    ("examples", "fraction", "removed"),
    [(100, 0.24, 24), (7, 0.5, 3), (3, 0.99, 2), (1, 0.9, 0), (0, 0.5, 0), (10, 0.0, 0)],
)
def test_how_many_go(examples, fraction, removed):
    state = ForgettingState.fresh(examples)
    state.observe(np.arange(examples), np.ones(examples, bool))
    assert state.remove(fraction) == removed
    assert int(state.removed.sum()) == removed
    assert len(state.kept()) == examples - removed


def test_the_share_holds_for_all_removals_together():
    state = of_histories(*["11"] * 10)
    assert [state.remove(0.4), state.remove(0.4), state.remove(0.6)] == [4, 0, 2]
    assert len(state.kept()) == 4
    state.remove(0.99)
    state.remove(0.99)
    assert len(state.kept()) == 1  # at least one example stays


def test_the_left_out_that_went_wrong_come_back_as_forgotten_once():
    state = of_histories("11", "11", "11", "00")
    state.remove(0.75)
    left_out = np.flatnonzero(state.removed)
    assert left_out.tolist() == [0, 1, 2]
    assert state.readmit(left_out, np.array([RIGHT, WRONG, RIGHT])) == 1
    assert state.kept().tolist() == [1, 3]
    assert state.counts.tolist() == [0, 1, 0, 0]
    assert state.learned[1]
    state.observe(np.array([1]), np.array([WRONG]))  # it was wrong before: no new event
    assert state.counts[1] == 1


def test_nothing_comes_back_when_all_are_right():
    state = of_histories("11", "11", "11")
    state.remove(0.5)
    assert state.readmit(np.flatnonzero(state.removed), np.array([RIGHT])) == 0
    assert state.kept().tolist() == [1, 2]


@settings(deadline=None)
@given(st.data())
def test_any_course_of_events_keeps_the_books(data):
    size = data.draw(st.integers(1, 10))
    state, never = ForgettingState.fresh(size), np.ones(size, bool)
    for step in data.draw(st.lists(st.sampled_from(["observe", "remove", "readmit"]), max_size=12)):
        before = len(state.kept())
        if step == "observe":
            kept = state.kept()
            correct = np.array(
                data.draw(st.lists(st.booleans(), min_size=len(kept), max_size=len(kept)))
            )
            state.observe(kept, correct)
            never[kept[correct]] = False
            assert len(state.kept()) == before
        elif step == "remove":
            fraction = data.draw(st.floats(0, 0.99))
            assert state.remove(fraction) == before - len(state.kept())
        else:
            out = np.flatnonzero(state.removed)
            correct = np.array(
                data.draw(st.lists(st.booleans(), min_size=len(out), max_size=len(out))), dtype=bool
            )
            assert state.readmit(out, correct) == len(state.kept()) - before
        assert len(state.kept()) >= 1
        assert not (state.removed & never).any()  # what was never learned is never left out
        assert (state.learned == ~never).all()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_impossible_fractions(fraction):
    with pytest.raises(
        InputError, match=r"forgetting\.fraction = .* allowed: a number in \[0, 1\)"
    ):
        ForgettingPolicy(fraction=fraction)


@pytest.mark.parametrize("start", [-0.1, 1.1, float("nan")])
def test_impossible_starts(start):
    with pytest.raises(InputError, match=r"forgetting\.start = .* allowed: a number in \[0, 1\]"):
        ForgettingPolicy(start=start)


def test_the_policy_is_off_by_default_and_starts_where_mest_does():
    policy = ForgettingPolicy()
    assert not policy.active
    assert policy.start == 70 / 160
    assert ForgettingPolicy(fraction=0.24).active
