"""The rules of shapes of channels, axes, recurrent layers, losses of numbers, and clipping."""

import math
from collections.abc import Callable

from mest_fed.runtime.rules import Rule, alike
from mest_fed.runtime.shapes import Shapes

__all__ = [
    "alike",
    "channels",
    "clip",
    "concat",
    "loss",
    "of_planes",
    "recurrent",
    "recurrent_work",
    "select",
    "sum_of_squares",
    "transpose",
    "upsample",
]


def channels(whole: str, part: str) -> Rule:
    """Return the rule of some channels of a whole; its number may be the attribute ``channels``."""

    def rule(s: Shapes) -> None:
        (count,) = s.dims("slots", 1)
        one = s.dims(whole if whole in s else part, 2, at_least=True)
        every = s.attributes.get("channels", one[1])
        s.require(count <= every, "slots", (count,), f"at most {every} channels")
        s.expect(whole, (one[0], every, *one[2:]))
        s.expect(part, (one[0], count, *one[2:]))
        s.expect("b", (every,))

    return rule


def concat(first: str, second: str, whole: str) -> Rule:
    """Return the rule by which one argument holds two others on its second axis."""

    def rule(s: Shapes) -> None:
        a, b = (s.dims(it, 2, at_least=True) for it in (first, second))
        s.require(a[:1] + a[2:] == b[:1] + b[2:], second, b, f"{a} but for the second axis")
        s.expect(whole, (a[0], a[1] + b[1], *a[2:]))

    return rule


def of_planes(x: str, factors: str, *others: str) -> Rule:
    """Return the rule of one factor a plane; ``ds`` is the gradient of the factors."""

    def rule(s: Shapes) -> None:
        shape = s.dims(x, 3, at_least=True)
        s.expect_all((factors, "ds"), shape[:2])
        s.expect_all([it for it in others if it != "ds"], shape)

    return rule


def upsample(x: str, y: str) -> Rule:
    """Return the rule of planes of which each pixel is repeated."""

    def rule(s: Shapes) -> None:
        images, count, height, width = s.dims(x, 4)
        down, across = s.attributes["factors"]
        s.expect(y, (images, count, height * down, width * across))

    return rule


def transpose(s: Shapes) -> None:
    """Check two axes that change places."""
    shape = list(s["x"])
    first, second = s.attributes["axes"]
    s.require(max(first, second) < len(shape), "axes", (first, second), f"those of {s['x']}")
    shape[first], shape[second] = shape[second], shape[first]
    s.expect("y", tuple(shape))


def select(x: str, y: str) -> Rule:
    """Return the rule of one position of the second axis."""

    def rule(s: Shapes) -> None:
        shape, index = s.dims(x, 2, at_least=True), s.attributes["index"]
        s.require(index < shape[1], "index", index, f"0 to {shape[1] - 1}")
        s.expect(y, (shape[0], *shape[2:]))

    return rule


def recurrent(gates: int, kept: str) -> Rule:
    """Return the rule of a recurrent layer or its gradient; ``kept`` has the shape of ``y``."""

    def rule(s: Shapes) -> None:
        given = "x" if "x" in s else "gates"
        examples, length, width = s.dims(given, 3)
        s.require(width % gates == 0, given, s[given], f"a multiple of {gates} at the end")
        hidden = width // gates
        s.expect_all(("x", "dx", "gates"), (examples, length, width))
        s.expect_all(("u", "du"), (width, hidden))
        s.expect_all(("bias", "dbias"), (width,))
        s.expect_all(("y", "dy", kept), (examples, length, hidden))

    return rule


def recurrent_work(products: int) -> Callable[[Shapes], int]:
    """Return the multiply-adds of so many products by the recurrent weight."""
    return lambda s: products * math.prod(s["y"][:2]) * math.prod(s["u"])


def loss(outputs: str) -> Rule:
    """Return the rule of a loss of (rows, numbers), or its gradient."""

    def rule(s: Shapes) -> None:
        s.expect_all(("targets", f"d{outputs}"), s.dims(outputs, 2))
        s.expect("share", (1,))
        s.expect("loss", ())

    return rule


def sum_of_squares(s: Shapes) -> None:
    """Check a sum over all elements, which has one."""
    s["x"]
    s.expect_all(("before", "total"), (1,))


def clip(s: Shapes) -> None:
    """Check a gradient that is scaled by the norm of all."""
    s.expect("y", s["gradient"])
    s.expect("total", (1,))
