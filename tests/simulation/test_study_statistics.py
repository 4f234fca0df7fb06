"""Means, spreads and intervals by numbers that were worked by hand."""

import math

import pytest

from mest_fed.simulation.study.statistics import Difference, Spread, t_quantile, t_share


@pytest.mark.parametrize(
    ("freedom", "value"),
    # Student's table, 97.5%.
    [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (4, 2.7764),
        (5, 2.5706),
        (9, 2.2622),
        (30, 2.0423),
        (100, 1.9840),
    ],
)
def test_quantiles_are_those_of_the_table(freedom, value):
    assert t_quantile(0.975, freedom) == pytest.approx(value, abs=5e-5)


def test_one_degree_of_freedom_is_cauchys():
    assert t_share(1.0, 1) == pytest.approx(0.5)
    assert t_quantile(0.95, 1) == pytest.approx(math.tan(0.45 * math.pi))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.9995])
def test_a_quantile_has_its_share(freedom, probability):
    inside = t_share(t_quantile(probability, freedom), freedom)
    assert inside == pytest.approx(2 * probability - 1, abs=1e-9)


@pytest.mark.parametrize(("probability", "freedom"), [(0.5, 3), (1.0, 3), (0.975, 0)])
def test_what_has_no_quantile(probability, freedom):
    with pytest.raises(ValueError, match="no positive quantile"):
        t_quantile(probability, freedom)


def test_spreads():
    assert Spread.of([]) is None
    assert Spread.of([3.0]) == Spread(1, 3.0, None)
    # 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14 by three.
    spread = Spread.of([1.0, 2.0, 3.0, 6.0])
    assert (spread.count, spread.mean) == (4, 3.0)
    assert spread.deviation == pytest.approx(math.sqrt(14 / 3))


def test_a_difference_by_hand():
    # 1, 2, 3: mean 2, deviation 1, so half of the interval is 4.3027 / sqrt 3 = 2.4841.
    found = Difference.of([1.0, 2.0, 3.0])
    assert (found.count, found.mean) == (3, 2.0)
    assert found.half == pytest.approx(2.4841, abs=5e-5)
    assert found.interval == pytest.approx((-0.4841, 4.4841), abs=5e-5)
    assert found.beyond_noise is False
    # 3, 4, 5: the same width around 4.
    assert Difference.of([3.0, 4.0, 5.0]).beyond_noise is True
    assert Difference.of([-3.0, -4.0, -5.0]).beyond_noise is True


def test_of_one_pair_nothing_can_be_said():
    found = Difference.of([0.5])
    assert found == Difference(1, 0.5, None)
    assert found.interval is None
    assert found.beyond_noise is None
    assert Difference.of([]) is None


def test_pairs_without_any_difference_are_within_noise():
    assert Difference.of([0.0, 0.0]).beyond_noise is False
    assert Difference.of([0.25, 0.25]).beyond_noise is True


def test_equal_numbers_have_no_spread():
    assert Spread.of([0.9832869080779945] * 3) == Spread(3, 0.9832869080779945, 0.0)
