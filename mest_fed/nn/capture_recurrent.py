"""LSTM and GRU as operators: a linear map of all positions, then the recurrent layer itself."""

from typing import Any

from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn.capture_values import Capture, Value, dropped

#: Class -> its operator.
_OPERATORS: dict[type[nn.Module], str] = {nn.LSTM: "lstm", nn.GRU: "gru"}
#: Setting -> the value that has operators.
_ALLOWED = {"batch_first": True, "bidirectional": False, "proj_size": 0}


class States:
    """The state of each layer after the last position, for ``states[layer]``."""

    def __init__(self, capture: Capture, name: str, of_layers: list[Value]) -> None:
        self.capture, self.name, self.of_layers = capture, name, of_layers

    def __getitem__(self, layer: Any) -> Value:
        """Return the state of a layer, (n, hidden)."""
        if not isinstance(layer, int) or not self.of_layers:
            raise InputError(
                "the last states have no operator but one layer's hidden state; allowed: h[layer]"
            )
        states = self.of_layers[layer]
        last = states.shape[1] - 1
        return self.capture.emit("select", f"{self.name}:last", {"x": states}, index=last)


def recurrent(capture: Capture, module: Any, name: str, x: Value, state: Any = None) -> Any:
    """Return all hidden states, and the last ones, as the module does."""
    for key, allowed in _ALLOWED.items():
        if (value := getattr(module, key)) != allowed:
            kind = type(module).__name__
            raise InputError(f"a {kind} with {key} = {value} has no operator; allowed: {allowed}")
    if state is not None or len(x.shape) != 3:
        raise InputError(
            "a recurrent layer with a first state, or of one sequence, has no operator; "
            "allowed: of (n, length, features) alone"
        )
    of_layers: list[Value] = []
    for layer in range(module.num_layers):
        if layer > 0 and capture.training:
            x = dropped(capture, module.dropout, f"{name}:dropout{layer}", x)
        x = _layer(capture, module, name, layer, x)
        of_layers.append(x)
    last = States(capture, name, of_layers)
    return (x, (last, States(capture, name, []))) if isinstance(module, nn.LSTM) else (x, last)


def _layer(capture: Capture, module: Any, name: str, layer: int, x: Value) -> Value:
    def held(leaf: str) -> int:
        return capture.held(getattr(module, f"{leaf}_l{layer}"), f"{name}.{leaf}_l{layer}")

    examples, length, features = x.shape
    label = f"{name}:layer{layer}"
    rows = capture.reshape(x, (examples * length, features), label)
    bias = held("bias_ih") if module.bias else None
    share = capture.emit("linear", f"{label}:share", {"x": rows, "w": held("weight_ih"), "b": bias})
    inputs: dict[str, Value | int | None] = {
        "x": capture.reshape(share, (examples, length, share.shape[1]), label),
        "u": held("weight_hh"),
        "bias": held("bias_hh") if module.bias else None,
    }
    return capture.emit(_OPERATORS[type(module)], label, inputs)
