"""PartialAggregate sums: the same bits however the positions are cut into blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.kernels import native
from mest_fed.kernels.native import weighted_sum
from mest_fed.server.aggregation.averaging import ArraySum
from mest_fed.server.aggregation.partial import PairwiseSum

SINGLES = st.floats(-(2.0**100), 2.0**100, width=32)


class Term:
    """A number that remembers how it was added up; its bits depend on the order."""

    def __init__(self, value, text):
        self.value, self.text = value, text

    def add(self, other):
        return Term(self.value + other.value, f"({self.text}+{other.text})")


def singles(values):
    pairwise = PairwiseSum()
    for position, value in enumerate(values):
        pairwise.add(None if value is None else Term(value, str(position)))
    return pairwise.total()


@pytest.mark.parametrize(
    ("present", "tree"),
    [
        ("0", "0"),
        ("0123", "((0+1)+(2+3))"),
        ("012345", "(((0+1)+(2+3))+(4+5))"),
        ("0123456", "(((0+1)+(2+3))+((4+5)+6))"),
        ("0_2_45", "((0+2)+(4+5))"),
        ("__23_5", "((2+3)+5)"),
    ],
)
def test_the_tree_by_hand(present, tree):
    values = [None if letter == "_" else 1.0 for letter in present]
    assert singles(values).text == tree


def test_nothing_adds_up_to_nothing():
    assert PairwiseSum().total() is None
    assert singles([None, None, None]) is None
    pairwise = PairwiseSum()
    pairwise.add(Term(1.0, "0"))
    assert pairwise.total().text == "0"
    assert pairwise.total() is None


@given(st.data())
def test_any_aligned_blocks_give_the_bits_of_single_positions(data):
    value = st.one_of(st.none(), st.floats(-1e300, 1e300))
    values = data.draw(st.lists(value, min_size=1, max_size=70))
    whole, start = PairwiseSum(), 0
    while start < len(values):
        aligned = [k for k in range(7) if start % (1 << k) == 0]
        level = data.draw(st.sampled_from(aligned))
        # Only the last block may lack positions.
        block = values[start : start + (1 << level)]
        inner = PairwiseSum()
        for position, term in enumerate(block, start):
            inner.add(None if term is None else Term(term, str(position)))
        whole.add(inner.total(), (len(block) - 1).bit_length())
        start += len(block)
    total, expected = whole.total(), singles(values)
    if expected is None:
        assert total is None
    else:
        assert (total.text, total.value) == (expected.text, expected.value)


def rows(values, size=3):
    """Return arrays, each of some numbers that follow from one."""
    return [np.float32(value) * np.array([1.0, -0.1, 3e-7][:size], np.float32) for value in values]


def eager(arrays, weights):
    """Return the sum by the tree of positions, one product and one sum after the other."""

    class Eager:
        def __init__(self, total):
            self.total = total

        def add(self, other):
            return Eager(self.total + other.total)

    pairwise = PairwiseSum()
    for array, weight in zip(arrays, weights, strict=True):
        pairwise.add(Eager(array.astype(np.float64) * weight))
    return pairwise.total().total


TERMS = st.lists(st.tuples(SINGLES, st.floats(0.0, 1e6)), min_size=1, max_size=40)


@given(TERMS)
def test_weighted_sums_have_the_bits_of_the_tree_compiled_or_not(terms):
    values, weights = zip(*terms, strict=True)
    arrays = rows(values)
    expected = eager(arrays, weights)
    assert weighted_sum(arrays, weights).tobytes() == expected.tobytes()
    assert native.tree_sum(arrays, weights).tobytes() == expected.tobytes()


@pytest.mark.skipif(not native.available(), reason="there are no compiled kernels")
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 16, 31, 64, 100])
def test_compiled_sums_over_any_number_of_long_arrays(count):
    generator = np.random.default_rng(count)
    # Lengths that no vector divides, in two dimensions.
    scales = np.float32(10) ** (np.arange(count) % 7)
    arrays = [generator.standard_normal((37, 29), np.float32) * scale for scale in scales]
    weights = generator.uniform(0, 200, count)
    expected = native.tree_sum(arrays, weights)
    assert weighted_sum(arrays, weights).tobytes() == expected.tobytes()


def test_arrays_that_the_kernels_do_not_take():
    doubles = [np.array([0.1, 0.2]), np.array([1.0, 2.0])]
    assert weighted_sum(doubles, [1.0, 10.0]).tolist() == [0.1 + 10.0, 0.2 + 20.0]
    strided = [np.arange(6, dtype=np.float32)[::2]] * 2
    assert weighted_sum(strided, [1.0, 2.0]).tolist() == [0.0, 6.0, 12.0]
    assert weighted_sum([np.float32(3.0)[None]], [0.0]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("arrays", "weights"), [([], []), (rows([1, 2]), [1.0]), ([*rows([1]), *rows([1], 2)], [1, 1])]
)
def test_what_cannot_be_summed(arrays, weights):
    with pytest.raises(ValueError, match=r"weights for|different shapes"):
        weighted_sum(arrays, weights)


@given(TERMS, st.data())
def test_array_sums_have_the_bits_of_the_tree_wherever_they_travelled(terms, data):
    values, weights = zip(*terms, strict=True)
    arrays = rows(values)
    pairwise = PairwiseSum()
    for array, weight in zip(arrays, weights, strict=True):
        one = ArraySum({"w": array}, weight)
        if data.draw(st.booleans()):  # as if it came from another process
            state = one.__getstate__()
            one = ArraySum.__new__(ArraySum)
            one.__setstate__(state)
        pairwise.add(one)
    total = pairwise.total()
    assert total.sums()["w"].tobytes() == eager(arrays, weights).tobytes()
    assert total.weight == pytest.approx(sum(weights))


def test_array_sums_of_other_names_or_shapes_are_refused():
    for other in ({"v": np.ones(2, np.float32)}, {"w": np.ones(3, np.float32)}):
        one = ArraySum({"w": np.ones(2, np.float32)}, 1.0)
        with pytest.raises(ValueError, match=r"different names|different shapes"):
            one.add(ArraySum(other, 1.0)).sums()
    one, other = (ArraySum({"w": np.ones(size, np.float32)}, 1.0) for size in (2, 3))
    one.sums()
    with pytest.raises(ValueError, match="different shapes"):
        one.add(other)
