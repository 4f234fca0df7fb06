"""Small cases of every operator, each beside what torch computes for it in float64."""

import elementwise_cases
import function_cases
import loss_cases
import normalisation_cases
import plane_cases
import pool_cases
import product_cases
import recurrent_cases
import token_cases
import update_cases
from drawn import Case, Draw, Makes

from mest_fed.runtime.operators import OPERATORS, adding_to
from mest_fed.runtime.shapes import Shapes

__all__ = ["CASES", "Case", "Draw", "gradients_of", "shapes_of"]

#: Forward operator -> how its cases are drawn.
CASES: dict[str, Makes] = {
    **elementwise_cases.CASES,
    **function_cases.CASES,
    **loss_cases.CASES,
    **normalisation_cases.CASES,
    **plane_cases.CASES,
    **pool_cases.CASES,
    **product_cases.CASES,
    **recurrent_cases.CASES,
    **token_cases.CASES,
    **update_cases.CASES,
}


def gradients_of(name):
    """Name the operators that compute gradients of an operator's inputs."""
    parts = ("", "_input", "_weight", "_values")
    found = [it for part in parts if (it := f"{name}{part}_gradient") in OPERATORS]
    apart = "b" in OPERATORS[name].optional and not any(
        "db" in OPERATORS[it].outputs for it in found
    )
    found += ["bias_gradient"] if apart else []
    return found + [other[0] for it in found if (other := adding_to(it)) is not None]


def shapes_of(kind, arrays, attributes):
    """Let the rule of an operator complete the shapes of outputs that are left out."""
    names = (*kind.inputs, *kind.outputs)
    known = {name: arrays[name].shape for name in names if name in arrays}
    wanted = [name for name in kind.outputs if name not in kind.optional]
    shapes = Shapes(kind.name, known, wanted, attributes)
    kind.rule(shapes)
    return {name: shapes[name] for name in kind.outputs if name in shapes}
