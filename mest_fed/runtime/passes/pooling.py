"""A convolution, ReLU and the maxima of 2x2 windows as one operator, forward and back.

The outputs of the convolution are never written down: the maxima are, with a byte that says where
each stood. At most a quarter of the positions has a gradient; the operator of the gradients visits
no others. The result is the same, but for rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mest_fed.runtime.passes.rewriting import Uses, operator, replaced
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator

_WINDOWS = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil": False}


@dataclass(frozen=True)
class _Chain:
    """Places of the operators of one chain, and the buffers at its end."""

    first: int
    after: tuple[int, int]
    y: int
    where: int


@dataclass(frozen=True)
class _Back:
    """Places of the operators that compute a chain's gradients, by what they give."""

    first: int
    second: int
    dy: int
    gradients: Mapping[str, int]


def with_pooling(program: Program) -> Program:
    """Replace each chain of a convolution, ReLU and 2x2 maxima, the latter two in any order.

    Parameters
    ----------
    program : Program
        A forward program, or one with gradients.

    Returns
    -------
    Program
        The same, where there is no such chain whose outputs between are read by nothing else.
    """
    uses = Uses(program)
    changes: dict[int, Operator | None] = {}
    for place, it in enumerate(program.operators):
        if it.name in ("conv2d", "sparse_conv2d") and (chain := _chain(uses, place)):
            changes.update(_changes(uses, chain))
    return replaced(program, changes)


def _chain(uses: Uses, place: int) -> _Chain | None:
    operators = uses.program.operators
    first = operators[place]
    if first.attributes["stride"] != (1, 1) or first.attributes.get("groups", 1) != 1:
        return None
    z = first.outputs[0]
    second = uses.reader(z, "relu", "max_pool2d")
    if second is None or not uses.read_by(z, [second]):
        return None
    names = {"relu", "max_pool2d"} - {operators[second].name}
    between = operators[second].outputs[0]
    third = uses.reader(between, *names)
    if third is None:
        return None
    pool, relu = (second, third) if operators[third].name == "relu" else (third, second)
    if operators[pool].attributes != _WINDOWS:
        return None
    back = [uses.reader(operators[relu].outputs[0], "relu_gradient")] if relu == second else []
    if not uses.read_by(between, [third, *back]):
        return None
    return _Chain(place, (second, third), operators[third].outputs[0], operators[pool].outputs[1])


def _changes(uses: Uses, chain: _Chain) -> dict[int, Operator | None]:
    """Return what the places of a chain and its gradients hold then; nothing if they do not fit."""
    operators = uses.program.operators
    first = operators[chain.first]
    given = {it: first.arguments.get(it) for it in ("x", "w", "values", "slots", "b")}
    name = f"{first.name}_relu_pool"
    made = operator(name, first.attributes, **given, y=chain.y, where=chain.where)
    changes: dict[int, Operator | None] = dict.fromkeys(chain.after)
    changes[chain.first] = made
    if not uses.readers.get(chain.where):
        return changes
    back = _back(uses, chain)
    if back is None:
        return {}
    changes |= dict.fromkeys((back.second, *back.gradients.values()))
    outputs = {it: operators[place].outputs[0] for it, place in back.gradients.items()}
    inputs = {it: number for it, number in given.items() if it != "b"}
    changes[back.first] = operator(
        f"{name}_gradient",
        first.attributes,
        **inputs,
        where=chain.where,
        dy=back.dy,
        **outputs,
    )
    return changes


def _back(uses: Uses, chain: _Chain) -> _Back | None:
    operators = uses.program.operators
    of_pool = uses.reader(chain.where, "max_pool2d_gradient")
    if of_pool is None or uses.readers[chain.where] != [of_pool]:
        return None
    relu = next(it for it in chain.after if operators[it].name == "relu")
    of_relu = uses.reader(operators[relu].outputs[0], "relu_gradient")
    if of_relu is None:
        return None
    order = (of_pool, of_relu) if relu == chain.after[0] else (of_relu, of_pool)
    first, second = (operators[it] for it in order)
    if first.outputs[0] != second.arguments["dy"]:
        return None
    if not uses.read_by(first.outputs[0], [order[1]]):
        return None
    gradients = _gradients(uses, chain, second.outputs[0])
    return _Back(*order, first.arguments["dy"], gradients) if gradients else None


def _gradients(uses: Uses, chain: _Chain, dz: int) -> dict[str, int] | None:
    """Return the places that compute gradients from that of the convolution's output."""
    operators = uses.program.operators
    product = operators[chain.first]
    names = {
        f"{product.name}_weight_gradient": "dw",
        f"{product.name}_values_gradient": "dvalues",
        f"{product.name}_input_gradient": "dx",
        "bias_gradient": "db",
    }
    if not uses.passing(dz):
        return None
    found: dict[str, int] = {}
    for place in uses.readers.get(dz, []):
        reader = operators[place]
        if reader.name not in names or names[reader.name] in found:
            return None
        found[names[reader.name]] = place
    return found if {"dw", "dvalues"} & found.keys() else None
