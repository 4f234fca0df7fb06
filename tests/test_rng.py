"""Random order, of which only a part is taken."""

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from mest_fed.rng import in_random_order, numpy_generator


class Scripted:
    """A generator that gives what it is told."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def integers(self, low, high):
        number = self.numbers.pop(0)
        assert low <= number < high
        return number


def test_an_order_by_hand():
    # 0 1 2 3 -> 2 is taken, 0 goes to its place: 1 0 3 -> 0 is taken, 1 goes there: 1 3.
    assert list(in_random_order(4, Scripted(2, 2, 2, 3))) == [2, 0, 1, 3]


@given(total=st.integers(0, 60), seed=st.integers(0, 5))
def test_each_comes_once(total, seed):
    assert sorted(in_random_order(total, numpy_generator(seed))) == list(range(total))


def test_all_orders_are_as_likely():
    generator = numpy_generator(1)
    found = Counter(tuple(in_random_order(3, generator)) for _ in range(6000))
    assert len(found) == 6
    assert all(abs(count - 1000) < 5 * 29 for count in found.values())  # five standard deviations


def test_only_what_is_taken_is_drawn():
    taken = list(islice(in_random_order(10**15, numpy_generator(2)), 100))
    assert len(set(taken)) == 100
    assert max(taken) > 10**14
