"""The table's functions of single elements, and the softmax over the last axis."""

from collections.abc import Mapping

from mest_fed.runtime import rules
from mest_fed.runtime.kind import Attribute, Kind


def activation(
    name: str,
    kept: str,
    attributes: Mapping[str, Attribute] | None = None,
    *,
    on_planes: bool = False,
) -> tuple[Kind, Kind]:
    """Return an elementwise function and its gradient, which needs the input or the output.

    One that keeps zeros, and whose loops take margins, may be computed on planes.
    """
    how = attributes or {}
    return (
        Kind(
            f"{name}(x) -> y",
            how,
            rules.alike("x", "y"),
            (("y", "x"),),
            planes=("x", "y") if on_planes else (),
        ),
        Kind(
            f"{name}_gradient({kept}, dy) -> dx",
            how,
            rules.alike("dy", kept, "dx"),
            (("dx", "dy"), ("dx", kept)),
            planes=(kept, "dy", "dx") if on_planes else (),
        ),
    )


_ANY = Attribute(float, -1e6, 1e6)

TABLE = (
    *activation("relu", "y", on_planes=True),
    *activation("relu6", "y", on_planes=True),
    *activation("silu", "x", on_planes=True),
    *activation("gelu", "x", on_planes=True),
    *activation("hard_swish", "x", on_planes=True),
    *activation("sigmoid", "y"),
    *activation("hard_sigmoid", "y"),
    *activation("tanh", "y"),
    *activation("leaky_relu", "y", {"slope": Attribute(float, 0, 1)}),
    *activation("elu", "y", {"alpha": Attribute(float, 0, 1e6)}),
    *activation("softmax", "y"),
    # factor * x + offset
    Kind(
        "scale(x) -> y",
        {"factor": _ANY, "offset": _ANY},
        rules.alike("x", "y"),
        (("y", "x"),),
    ),
    Kind("subtract(a, b) -> c", {}, rules.alike("a", "b", "c"), (("c", "a"), ("c", "b"))),
)
