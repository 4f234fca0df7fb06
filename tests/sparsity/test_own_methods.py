"""A method of a user's own: its hooks are tried before a run begins."""

import pytest

from mest_fed.errors import InputError
from mest_fed.sparsity import build_method

HEAD = "import numpy as np\nfrom mest_fed import Bounds, Method\nclass Mine(Method):\n"
BOUNDS = "    def bounds(self, progress): "
IMPORTANCE = "    def importance(self, values, gradients): "
GROWTH = "    def growth_order(self, layout, generator, dense_gradient=None): "


def build(tmp_path, body, **options):
    (tmp_path / "mine.py").write_text(HEAD + body)
    return build_method(f"{tmp_path}/mine.py:Mine", 0.1, **options)


def test_its_hooks_are_used(tmp_path):
    method = build(tmp_path, BOUNDS + "return Bounds(floor=0.8 + 0.2 * progress, ceiling=1.5)")
    assert method.bounds(0.5).floor == pytest.approx(0.9)
    assert method.peak == 1.5


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (BOUNDS + "return 0.7", r"bounds\(0.0\) gives 0.7; allowed: Bounds"),
        (BOUNDS + "return Bounds(floor=-1)", "a floor in"),
        (BOUNDS + "return Bounds(ceiling=float('nan'))", "a ceiling from 1"),
        (BOUNDS + "return Bounds(floor=1 / (1 - progress))", r"bounds\(0.25\)"),
        (BOUNDS + "raise ValueError('oh no')", r"ValueError: oh no \(.*mine.py:4\)"),
        (
            IMPORTANCE + "return values.sum()",
            "importance gives .*0.0.*; allowed: a NumPy array",
        ),
        (IMPORTANCE + "return 3", "importance gives 3"),
        (
            IMPORTANCE + "return values[:, 0] * np.inf",
            r"importance .*\(8,\); allowed: a NumPy array of finite",
        ),
        (GROWTH + "return np.zeros(2), np.zeros(2)", r"growth_order gives shape \(2,\)"),
        (GROWTH + "return np.zeros(16), np.zeros(16)", "slots of shape .*float64"),
        (GROWTH + "return 1", "TypeError: "),
    ],
)
def test_a_hook_that_gives_something_else_is_one_line(body, expected, tmp_path):
    with pytest.raises(InputError, match=expected) as error:
        build(tmp_path, body)
    assert "\n" not in str(error.value)
    assert "sparsity.method = " in str(error.value)


def test_importance_that_needs_gradients_is_for_clients_that_mutate(tmp_path):
    body = IMPORTANCE + "return (values * gradients)[:, 0]"
    build(tmp_path, body, gradients=True)
    with pytest.raises(InputError, match="NoneType"):
        build(tmp_path, body, gradients=False)
