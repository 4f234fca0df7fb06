"""The gradient of a linear layer's weight and its update as one operator.

The gradient is never written down; weight and momentum are read and written once, and the gradient
of the layer's input is taken from the same reading. Only of a step whose batch is one group: of
several, the gradient is a sum that is not known before the last.
"""

from collections.abc import Collection

from mest_fed.runtime.passes.rewriting import Uses, operator, replaced
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator

#: Operator of a weight's gradient -> the argument that is the weight, and what computes the
#: gradient of the input and the output of the layer.
_LAYERS = {
    "linear_weight_gradient": ("w", "linear_input_gradient", "linear"),
    "sparse_linear_values_gradient": ("values", "sparse_linear_input_gradient", "sparse_linear"),
}


def with_direct_updates(program: Program, wanted: Collection[str] = ()) -> Program:
    """Let weights of linear layers be updated as their gradients are computed, by SGD.

    Parameters
    ----------
    program : Program
        A whole step.
    wanted : collection of str
        Names of parameters whose gradients are read after a step, which keep them.

    Returns
    -------
    Program
        The same, where no gradient of such a weight is read by its update alone.
    """
    uses = Uses(program)
    changes: dict[int, Operator | None] = {}
    for place, it in enumerate(program.operators):
        if it.name in _LAYERS:
            changes.update(_changes(uses, place, wanted))
    return replaced(program, changes)


def _changes(uses: Uses, place: int, wanted: Collection[str]) -> dict[int, Operator | None]:
    """Return what the places of a layer's gradients and update hold then; nothing if they stay."""
    operators, buffers = uses.program.operators, uses.program.buffers
    gradient = operators[place]
    argument, of_input, layer = _LAYERS[gradient.name]
    update = uses.reader(gradient.outputs[0], "sgd")
    if update is None or not uses.read_by(gradient.outputs[0], [update]):
        return {}
    settings = operators[update].arguments
    weight, dy = settings["parameter"], gradient.arguments["dy"]
    found = [
        it
        for it in uses.readers[dy]
        if operators[it].name == of_input and operators[it].arguments[argument] == weight
    ]
    forward = [it for it in uses.readers[weight] if operators[it].name == layer]
    if {*uses.readers[weight]} != {*forward, *found, update} or len(forward) != 1:
        return {}
    if len(found) > 1 or buffers[weight].name in wanted:
        return {}
    made = operator(
        f"{layer}_sgd",
        {**gradient.attributes, **operators[update].attributes},
        x=gradient.arguments["x"],
        slots=gradient.arguments.get("slots"),
        dy=dy,
        dx=operators[found[0]].outputs[0] if found else None,
        rates=settings["rates"],
        momentum_buffer=settings.get("momentum_buffer"),
        **{argument: weight},
    )
    return {place: made, update: None, **dict.fromkeys(found)}
