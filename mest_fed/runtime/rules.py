"""The rules of shapes, one for each family of operators, and the work of products."""

import math
from collections.abc import Callable

from mest_fed.runtime.shapes import Shape, Shapes, slide

Rule = Callable[[Shapes], None]


def sparse(s: Shapes, values: str) -> Shape:
    """Check granules against the shape of their weight, and return it."""
    weight: Shape = s.attributes["weight_shape"]
    rows, (active,) = s.attributes["rows"], s.dims("slots", 1)
    s.expect(values, (active, rows))
    granules = -(-weight[0] // rows) * math.prod(weight[1:])
    s.require(active <= granules, "slots", (active,), f"at most {granules} granules")
    return weight


def _convolved(s: Shapes, x: str, weight: str, values: str) -> Shape:
    """Check a convolution's input and bias against its weight; return the shape of its output."""
    images, channels, *size = s.dims(x, 4)
    outputs, inputs, *kernel = sparse(s, values) if values else s.dims(weight, 4)
    groups = 1 if values else s.attributes["groups"]
    s.require(inputs * groups == channels, x, s[x], f"{inputs * groups} channels")
    s.require(outputs % groups == 0, "groups", groups, f"a divisor of {outputs}")
    s.expect_all(("b", "db"), (outputs,))
    return images, outputs, *slide(s, tuple(size), tuple(kernel))


def convolution(x: str, y: str, weight: str = "", values: str = "") -> Callable[[Shapes], None]:
    """Return the rule of a convolution or one of its gradients; the arguments have these names."""
    return lambda s: s.expect(y, _convolved(s, x, weight, values))


def pooled_convolution(weight: str = "", values: str = "") -> Callable[[Shapes], None]:
    """Return the rule of a convolution with 2x2 windows behind it, or of its gradient."""

    def rule(s: Shapes) -> None:
        *lead, height, width = _convolved(s, "x", weight, values)
        s.require(min(height, width) > 1, "x", s["x"], "a window of 2 x 2 outputs or more")
        s.expect_all(("y", "where", "dy"), (*lead, height // 2, width // 2))
        name = weight or values
        s.expect(f"d{name}", s[name])
        s.expect("dx", s["x"])

    return rule


def convolution_work(y: str, weight: str) -> Callable[[Shapes], int]:
    """Return the multiply-adds of a convolution: each weight is used once a pixel and image."""

    def work(s: Shapes) -> int:
        images, _, height, width = s[y]
        per_pixel = math.prod(s[weight])
        return images * height * width * per_pixel

    return work


def slides_on_planes(weight: str = "") -> Callable[[Shapes], bool]:
    """Return whether a convolution, or one of its gradients, can read and write planes in place.

    Rows have no side margins, and phases of a stride are known only for the usual kernels: at a
    stride of 1 odd kernels up to 5x5 whose padding keeps the size, at 2 those of 3x3 and 1x1.
    """

    def holds(s: Shapes) -> bool:
        shape = s[weight] if weight else s.attributes["weight_shape"]
        kernel, stride, padding = shape[2:], s.attributes["stride"], s.attributes["padding"]
        whole = s.attributes["rows"] in (1, 2, 4) if not weight else s.attributes["groups"] == 1
        if not whole or any(
            2 * edge + 1 != side for side, edge in zip(kernel, padding, strict=True)
        ):
            return False
        if stride == (1, 1):
            return max(kernel) <= 5
        return stride == (2, 2) and kernel in ((3, 3), (1, 1))

    return holds


def pooled_work(y: str, weight: str, products: int) -> Callable[[Shapes], int]:
    """Return the multiply-adds of so many products at each of a window's four positions."""
    one = convolution_work(y, weight)
    return lambda s: 4 * products * one(s)


def linear(x: str, y: str, weight: str = "", values: str = "") -> Callable[[Shapes], None]:
    """Return the rule of a linear map or one of its gradients; see :func:`convolution`."""

    def rule(s: Shapes) -> None:
        images, features = s.dims(x, 2)
        outputs, inputs = sparse(s, values) if values else s.dims(weight, 2)
        s.require(inputs == features, x, s[x], f"{inputs} features")
        s.expect("b", (outputs,))
        s.expect(y, (images, outputs))

    return rule


def linear_work(rows: str, weight: str) -> Callable[[Shapes], int]:
    """Return the multiply-adds of a linear map: each weight is used once a row."""
    return lambda s: s[rows][0] * math.prod(s[weight])


def bias(s: Shapes) -> None:
    """Check the gradient of a bias."""
    s.expect("db", (s.dims("dy", 2, at_least=True)[1],))


_PLANES = ("y", "residual", "dx", "dy", "more", "dresidual")
_OF_CHANNELS = ("gamma", "beta", "dgamma", "dbeta")


def norm(statistics: Callable[[Shapes], Shape]) -> Callable[[Shapes], None]:
    """Return the rule of a normalisation or its gradient with statistics of such a shape."""

    def rule(s: Shapes) -> None:
        shape = s.dims("x", 2, at_least=True)
        s.expect_all(_PLANES, shape)
        s.expect_all(_OF_CHANNELS, (shape[1],))
        s.expect_all(("mean", "scale"), statistics(s))
        if "dy" in s and s.attributes["relu"]:
            s[("y")]  # the gradient of a ReLU needs its output

    return rule


def of_groups(s: Shapes) -> Shape:
    """Return the shape of the statistics of group norm."""
    shape, groups = s["x"], s.attributes["groups"]
    s.require(shape[1] % groups == 0, "groups", groups, f"a divisor of {shape[1]}")
    return shape[0], groups


def of_batch(s: Shapes) -> Shape:
    """Return the shape of the statistics of batch norm."""
    shape = s["x"]
    values = math.prod(shape) // shape[1]
    s.require(values > 1, "x", shape, "more than one value a channel")
    s.expect_all(("running_mean", "running_variance"), (shape[1],))
    return (shape[1],)


def norm_inference(s: Shapes) -> None:
    """Check a normalisation by running statistics."""
    shape = s.dims("x", 2, at_least=True)
    s.expect_all(("y", "residual"), shape)
    s.expect_all(("gamma", "beta", "running_mean", "running_variance"), (shape[1],))


def layer_norm(s: Shapes) -> None:
    """Check a layer norm or its gradient."""
    axes = s.attributes["axes"]
    shape = s.dims("x", axes + 1, at_least=True)
    s.expect_all(("y", "dx", "dy"), shape)
    s.expect_all(_OF_CHANNELS, shape[-axes:])
    s.expect_all(("mean", "scale"), shape[:-axes])


def alike(*names: str) -> Callable[[Shapes], None]:
    """Return the rule by which all arguments have the shape of the first."""
    return lambda s: s.expect_all(names[1:], s[names[0]])


def pool(x: str, y: str, *others: str) -> Callable[[Shapes], None]:
    """Return the rule of a pooling or its gradient; ``others`` have the shape of ``y``."""

    def rule(s: Shapes) -> None:
        images, channels, *size = s.dims(x, 4)
        kernel, padding = s.attributes["kernel"], s.attributes["padding"]
        s.require(math.prod(kernel) < 256, "kernel", kernel, "at most 255 places")
        fits = all(2 * edge <= window for edge, window in zip(padding, kernel, strict=True))
        s.require(fits, "padding", padding, "at most half the kernel")
        pooled = slide(s, tuple(size), kernel, ceil=s.attributes.get("ceil", False))
        s.expect_all((y, *others), (images, channels, *pooled))

    return rule


def global_pool(x: str, y: str) -> Callable[[Shapes], None]:
    """Return the rule of the mean over planes."""
    return lambda s: s.expect(y, s.dims(x, 3, at_least=True)[:2])


def sequence_mean(x: str, y: str) -> Callable[[Shapes], None]:
    """Return the rule of the mean over positions."""

    def rule(s: Shapes) -> None:
        examples, _, features = s.dims(x, 3)
        s.expect(y, (examples, features))

    return rule


def reshape(s: Shapes) -> None:
    """Check that both sides hold as many values."""
    s.require(math.prod(s["x"]) == math.prod(s["y"]), "y", s["y"], f"as many values as {s['x']}")


def split(x: str, parts: tuple[str, ...]) -> Callable[[Shapes], None]:
    """Return the rule of a split of the last axis into equal parts, or of the way back."""

    def rule(s: Shapes) -> None:
        whole = x in s
        shape = s.dims(x if whole else parts[0], 1, at_least=True)
        count = len(parts)
        s.require(
            not whole or shape[-1] % count == 0, x, shape, f"a multiple of {count} at the end"
        )
        last = shape[-1] // count if whole else shape[-1]
        s.expect_all(parts, (*shape[:-1], last))
        s.expect(x, (*shape[:-1], count * last))

    return rule


def positions(s: Shapes) -> None:
    """Check the vectors of positions that are added to a sequence, or their gradient."""
    _, length, features = shape = s.dims("x" if "x" in s else "dy", 3)
    table = "table" if "table" in s else "dtable"
    rows, width = s.dims(table, 2)
    s.require(rows >= length and width == features, table, s[table], f"{length} x {features}")
    s.expect("y", shape)


def embedding(y: str, table: str) -> Callable[[Shapes], None]:
    """Return the rule of a look-up in a table of vectors."""
    return lambda s: s.expect(y, (*s["indices"], s.dims(table, 2)[1]))


def attention(s: Shapes) -> None:
    """Check an attention or its gradient."""
    examples, length, features = s.dims("q", 3)
    _, source, _ = s.dims("k", 3)
    heads = s.attributes["heads"]
    s.require(features % heads == 0, "heads", heads, f"a divisor of {features}")
    s.expect_all(("y", "dy", "dq"), s["q"])
    s.expect_all(("k", "v", "dk", "dv"), (examples, source, features))
    s.expect("weights", (examples, heads, length, source))


def attention_work(products: int) -> Callable[[Shapes], int]:
    """Return the multiply-adds of so many products of the size of queries by keys."""
    return lambda s: products * math.prod(s["q"]) * s["k"][1]


def dropout(s: Shapes) -> None:
    """Check a dropout."""
    s.expect("seed", (1,))
    s.expect_all(("y", "kept"), s["x"])


def cross_entropy(logits: str, *others: str) -> Callable[[Shapes], None]:
    """Return the rule of the loss or its gradient; ``others`` have the shape of ``logits``."""

    def rule(s: Shapes) -> None:
        shape = s.dims(logits, 2, at_least=True)
        s.expect("targets", shape[:-1])
        s.expect("share", (1,))
        s.expect("loss", ())
        s.expect_all(others, shape)

    return rule


def update(s: Shapes) -> None:
    """Check an optimizer: all states have the shape of the parameter."""
    s.expect_all(("gradient", "momentum_buffer", "first", "second"), s["parameter"])
    s.expect_all(("rates", "step"), (1,))


def linear_update(weight: str = "", values: str = "") -> Callable[[Shapes], None]:
    """Return the rule of a linear layer's gradients and update."""
    layer = linear("x", "dy", weight, values)

    def rule(s: Shapes) -> None:
        layer(s)
        s.expect("dx", s["x"])
        s.expect("momentum_buffer", s[weight or values])
        s.expect("rates", (1,))

    return rule


def linear_update_work(weight: str) -> Callable[[Shapes], int]:
    """Return the multiply-adds of a linear layer's gradients: two products, or one without dx."""
    one = linear_work("x", weight)
    return lambda s: (1 + ("dx" in s)) * one(s)
