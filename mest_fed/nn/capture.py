"""From a module to a forward program: which operators of ``mest_fed.runtime`` compute it.

The module is traced by torch.fx; each step of the trace becomes operators, by a rule for its module
(``capture_layers.py``), function or method (``capture_functions.py``). A step without a rule is
refused by a line that names it. Only shapes are computed, so the module may be on the meta device.
The program is that of a training step, whatever mode the module is in, or that of an evaluation
where this is asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from mest_fed.described import kind_of, one_line
from mest_fed.errors import InputError, MestFedError
from mest_fed.nn.capture_functions import FUNCTIONS, METHODS
from mest_fed.nn.capture_layers import MODULES
from mest_fed.nn.capture_values import Capture, Value
from mest_fed.nn.tracing_threads import ThreadTracer
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import DTYPES

#: Name of the program's input.
INPUT = "input"


@dataclass(frozen=True)
class Captured:
    """A module as a program.

    Parameters
    ----------
    program : Program
        Forward operators alone.
    output : str
        Name of the buffer that the module returns.
    tensors : dict of str to Tensor
        The module's tensors by the names of the parameters and states that hold them.
    computed : dict of str to callable
        Of those that hold something else than the tensor itself, what makes it of the tensor.
    """

    program: Program
    output: str
    tensors: dict[str, Tensor]
    computed: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    @property
    def trained(self) -> list[str]:
        """Names of the parameters that have gradients."""
        return [name for name, it in self.tensors.items() if it.requires_grad]

    def content(self, name: str, tensor: Tensor) -> Tensor:
        """Return what a buffer holds of a tensor: the tensor itself, or what is made of it."""
        make = self.computed.get(name)
        return tensor if make is None else make(tensor)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of the tensors by name, as the program holds them."""
        shapes = {it.name: it.shape for it in self.program.buffers}
        return {
            name: np.array(self.content(name, it).detach().cpu().numpy()).reshape(shapes[name])
            for name, it in self.tensors.items()
        }


def capture(
    model: nn.Module, shape: tuple[int, ...], dtype: str = "float32", *, training: bool = True
) -> Captured:
    """Make the forward program of a module.

    Parameters
    ----------
    model : nn.Module
        Takes one tensor and returns one.
    shape : tuple of int
        Of its input, the batch first.
    dtype : str
        ``float32``, or ``int64`` for tokens.
    training : bool
        Whether layers drop and normalise by statistics of the batch; else as in evaluation. What
        the module's own code does by its mode, it does by the mode in which it is.

    Raises
    ------
    InputError
        If a step has no operator, or cannot be traced: one line that names it.
    """
    if _Tracer().is_leaf_module(model, ""):
        model = nn.Sequential(model)
    graph = _trace(model)
    made = Capture(model, training=training)
    number = made.builder.buffer(INPUT, shape, dtype, "input")
    results: dict[fx.Node, Any] = {}
    inputs = [Value(number, tuple(shape))]
    for node in graph.nodes:
        args, kwargs = (fx.node.map_arg(it, results.__getitem__) for it in (node.args, node.kwargs))
        if node.op == "output":
            return _finish(made, args[0])
        if node.op == "placeholder":
            results[node] = inputs.pop() if inputs else _default(node)
        else:
            results[node] = _step(made, node, args, kwargs)
    raise InputError("the module returns nothing; allowed: one that returns a tensor")


def _finish(made: Capture, result: Any) -> Captured:
    held = made.builder.buffers
    if not isinstance(result, Value) or held[result.number].role != "temporary":
        raise InputError("the module does not return one tensor that it computes; allowed: one")
    made.builder.role(result.number, "output")
    name = held[result.number].name
    return Captured(made.builder.end_phase(0).program(), name, made.tensors, made.computed)


def _default(node: fx.Node) -> Any:
    if not node.args:
        raise InputError(f"the module takes a second input, {node.target!r}; allowed: one tensor")
    return node.args[0]


class _Tracer(ThreadTracer):
    """Traces through modules without a rule; torch's own without one stay steps, to be refused."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES or super().is_leaf_module(m, module_qualified_name)


@contextmanager
def _own_gradients_refused() -> Iterator[None]:
    """Refuse autograd functions: a trace sees their forward pass, and would lose the backward."""
    function: Any = torch.autograd.Function
    whole = vars(function)["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(it, fx.Proxy) for it in (*args, *kwargs.values())):
            what = f"autograd function {cls.__name__!r}"
            raise InputError(f"{what} has no operator: the model is no program")
        return whole.__func__(cls, *args, **kwargs)

    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = whole


def _trace(model: nn.Module) -> fx.Graph:
    try:
        with _own_gradients_refused():
            return _Tracer().trace(model)
    except MestFedError:
        raise
    except Exception as error:  # whatever a user's forward raises about a proxy
        name = type(model).__name__
        raise InputError(f"{name} cannot be traced: {one_line(error)}") from error


def _step(made: Capture, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Compute one step of the trace."""
    if node.op == "get_attr":
        tensor = _attribute(made.model, str(node.target))
        return Value(made.held(tensor, str(node.target)), tuple(tensor.shape))
    if node.op == "call_module":
        name = str(node.target)
        module = made.model.get_submodule(name)
        rule: Callable[..., Any] | None = MODULES.get(type(module))
        what, key = f"module {name!r}, {kind_of(module)},", name
        given: tuple[Any, ...] = (made, module, name, *args)
    else:
        table = FUNCTIONS if node.op == "call_function" else METHODS
        rule = table.get(node.target)
        what, key = f"{node.op.partition('_')[2]} {_title(node.target)!r}", node.name
        given = (made, node.name, *args)
    if rule is None:
        raise InputError(f"{what} has no operator: the model is no program")
    try:
        return rule(*given, **kwargs)
    except TypeError as error:
        raise InputError(
            f"{what} is called in a way that has no operator: {one_line(error)}"
        ) from error
    except InputError as error:
        raise InputError(f"{key}: {error}") from None


def _title(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _attribute(model: nn.Module, path: str) -> Tensor:
    found: Any = model
    for part in path.split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor) or str(found.dtype).removeprefix("torch.") not in DTYPES:
        raise InputError(f"{path!r} is no tensor of a type that programs have")
    return found
