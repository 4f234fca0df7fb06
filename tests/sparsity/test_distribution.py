"""Layer densities."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.errors import InputError
from mest_fed.sparsity import layer_counts, layout_for


def layouts(scheme="unstructured"):
    shapes = {"a": (16, 4, 3, 3), "b": (32, 16, 3, 3), "c": (64, 128)}
    return {name: layout_for(scheme, shape) for name, shape in shapes.items()}


def test_uniform_gives_each_layer_the_same():
    assert layer_counts(layouts(), 0.25) == {"a": 144, "b": 1152, "c": 2048}


def test_erk_by_hand():
    # sum(shape) / prod(shape): a 26/576, b 54/4608, c 192/8192; active = scale * sum(shape)
    counts = layer_counts(layouts(), 0.1, "erk")
    total = 0.1 * (576 + 4608 + 8192)
    scale = total / (26 + 54 + 192)
    assert counts == {"a": round(26 * scale), "b": round(54 * scale), "c": round(192 * scale)}


@given(st.floats(0.01, 1.0))
def test_erk_keeps_the_total_and_fills_small_layers(density):
    counts = layer_counts(layouts(), density, "erk")
    assert sum(counts.values()) == pytest.approx(density * 13376, abs=2)
    assert counts["a"] <= 576


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_counts_grow_with_density_so_that_masks_nest(distribution):
    steps = [layer_counts(layouts(), d / 50, distribution) for d in range(1, 51)]
    for smaller, larger in pairwise(steps):
        assert all(smaller[name] <= larger[name] for name in smaller)


@pytest.mark.parametrize("density", [0.0, 1.2, -1])
def test_impossible_densities(density):
    with pytest.raises(InputError, match="density"):
        layer_counts(layouts(), density)


def test_unknown_distribution():
    with pytest.raises(InputError, match="uniform, erk"):
        layer_counts(layouts(), 0.1, "erdos")


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("{name: 2.0 for name in layouts}", r"gives a the density 2\.0; allowed: .*\(0, 1\]"),
        ("{name: float('nan') for name in layouts}", "gives a the density nan; allowed: a number"),
        ("{name: 'half' for name in layouts}", "gives a the density 'half'; allowed: a number"),
        ("{}", "gives no density of a; allowed: a mapping with all layers"),
        ("density", "gives no density of a; allowed: a mapping with all layers"),
    ],
)
def test_what_a_distribution_of_ones_own_gives_is_checked(body, what, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(f"def share(layouts, density):\n    return {body}\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"^sparsity\.distribution = '{file}:share' {what}"):
        layer_counts(layouts(), 0.5, f"{file}:share")
