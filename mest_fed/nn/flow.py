"""Where a model begins and ends, and its shortcuts, found by the flow of data.

The stem reads the model's input, the head makes its output; both stay dense. A layer is a head if
no other layer reads what it makes, and a convolution is a stem if it reads what no layer made. A
model may have several of either. A projection shortcut is a 1x1 convolution whose output is added
to what other layers made of the same input.
"""

import copy
import inspect
import math
import operator
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from mest_fed.nn.distributed import unwrapped
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.products import SparseLinear
from mest_fed.nn.tracing_threads import ThreadTracer

_MOST_CONDITIONS = 1000
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


class Ends(NamedTuple):
    """Names of the layers at a model's ends, and of its projection shortcuts.

    A model that knows its own declares them as its attribute ``ends``; it is then not traced.
    """

    stem: tuple[str, ...]
    head: tuple[str, ...]
    shortcuts: tuple[str, ...] | None = None
    """None: find them by the flow of data."""


def find_ends(model: nn.Module, layers: Mapping[str, nn.Module]) -> Ends:
    """Find stem, head and projection shortcuts among a model's convolutions and linear layers.

    They are taken from what the model declares, else from a symbolic trace of its ``forward``,
    which runs on a copy without numbers; a condition on data is taken to hold. A module that cannot
    be traced counts as one step, whose layers run in the order in which they are defined; shortcuts
    are looked for in its parts.

    Parameters
    ----------
    model : nn.Module
        Any; it stays as it is.
    layers : mapping of str to nn.Module
        The layers by name, in order of definition.
    """
    root = unwrapped(model)
    names = {module: name for name, module in layers.items()}
    declared = _declared(root, names)
    if declared is not None and declared.shortcuts is not None:
        return declared
    if declared is not None and not any(map(is_pointwise, names)):
        return declared._replace(shortcuts=())
    graph = _traced(root, set(names))
    shortcuts = tuple(dict.fromkeys(_shortcuts_in(root, names, graph)))
    if declared is not None:
        return declared._replace(shortcuts=shortcuts)
    if graph is None:
        return Ends(_first_convolution(layers), _last(layers), shortcuts)
    return _ends_of(graph, root, layers)._replace(shortcuts=shortcuts)


def _declared(root: nn.Module, names: Mapping[nn.Module, str]) -> Ends | None:
    """Return what a model says of itself, under the names that its layers have here."""
    declared: Ends | None = getattr(root, "ends", None)
    if declared is None:
        return None
    own = dict(root.named_modules())
    found = [[own.get(name) for name in some or ()] for some in declared]
    if not all(module in names for modules in found for module in modules):
        return None
    stem, head, *rest = [tuple(names[m] for m in some if m is not None) for some in found]
    shortcuts = Ends(*declared).shortcuts
    return Ends(stem, head, None if shortcuts is None else rest[0])


def _ends_of(graph: fx.Graph, root: nn.Module, layers: Mapping[str, nn.Module]) -> Ends:
    names = {module: name for name, module in layers.items()}
    kinds = dict(root.named_modules())
    run = {node: _run_by(node, kinds, names) for node in graph.nodes}
    makes = {node for node in graph.nodes if run[node] or _has_weights(node, kinds)}
    stem: dict[str, None] = {}
    head: dict[str, None] = {}
    behind: dict[fx.Node, bool] = {}  # a layer, or another module with weights
    for node in graph.nodes:
        behind[node] = any(behind[it] or it in makes for it in node.all_input_nodes)
        if run[node] and not behind[node]:
            stem |= dict.fromkeys(_first_convolution({n: layers[n] for n in run[node]}))
    before: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        before[node] = any(before[it] or it in makes for it in node.users)
        if run[node] and not before[node]:
            head |= dict.fromkeys(_last({n: layers[n] for n in run[node]}))
    return Ends(tuple(stem), tuple(head))


def _has_weights(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Say whether a step calls a module with weights, such as an embedding or an LSTM."""
    if node.op != "call_module":
        return False
    return any(it.dim() > 1 for it in modules[str(node.target)].parameters())


def _run_by(
    node: fx.Node, modules: Mapping[str, nn.Module], names: Mapping[nn.Module, str]
) -> list[str]:
    """List the layers that a step runs: by a call, or by reading their weight."""
    found: list[nn.Module] = []
    if node.op == "call_module":
        found += modules[str(node.target)].modules()
    for read in node.all_input_nodes:
        if read.op == "get_attr":
            owner = modules.get(str(read.target).rpartition(".")[0])
            found += [] if owner is None else [owner]
    return [names[module] for module in dict.fromkeys(found) if module in names]


def _shortcuts_in(
    root: nn.Module, names: Mapping[nn.Module, str], graph: fx.Graph | None
) -> Iterator[str]:
    """Yield the projection shortcuts of a module, of which a trace may have failed."""
    if not any(is_pointwise(it) for it in root.modules() if it in names):
        return
    opaque = [root]
    if graph is not None:
        kinds = dict(root.named_modules())
        run = {node: _run_by(node, kinds, names) for node in graph.nodes}
        layers = {name: module for module, name in names.items()}
        for node in graph.nodes:
            alone = len(run[node]) == 1 and is_pointwise(layers[run[node][0]])
            if alone and _is_shortcut(node, run, layers):
                yield run[node][0]
        called = (kinds[str(node.target)] for node in graph.nodes if node.op == "call_module")
        opaque = [module for module in called if module not in names]
    for module in opaque:
        for child in module.children():
            yield from _shortcuts_in(child, names, _traced(child, set(names)))


def _is_shortcut(
    node: fx.Node, run: Mapping[fx.Node, list[str]], layers: Mapping[str, nn.Module]
) -> bool:
    """Say whether a 1x1 convolution is alone between a fork and a sum with what layers made.

    Paths through the convolution itself do not count: what is computed of its output is no branch
    beside it.
    """

    def inputs(it: fx.Node) -> Any:
        return () if it is node else it.all_input_nodes

    def users(it: fx.Node) -> Any:
        return () if it is node else it.users

    sources = _reached(node, lambda it: it.all_input_nodes, lambda it: not run[it])
    above = _reached(node, lambda it: it.all_input_nodes)
    path = _reached(
        node, lambda it: it.users, lambda it: not run[it] and len(it.all_input_nodes) < 2
    )
    others = {
        other
        for total in path
        if total.target in _SUMS
        for other in total.all_input_nodes
        if other is not node and other not in path
    }
    for other in others:
        before = {other} | _reached(other, inputs)
        for fork in sources & before:
            after = _reached(fork, users)
            beside = [name for it in before & after if it is not node for name in run[it]]
            alone = not any(run[it] for it in above & after)
            if alone and (len(beside) > 1 or any(not is_pointwise(layers[n]) for n in beside)):
                return True
    return False


def _reached(start: fx.Node, steps: Any, passes: Any = lambda _: True) -> set[fx.Node]:
    """Return the nodes that can be reached from one; through those alone that ``passes``."""
    found: set[fx.Node] = set()
    todo: list[fx.Node] = list(steps(start))
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += steps(node) if passes(node) else ()
    return found


def _first_convolution(layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    return tuple(n for n, m in layers.items() if not is_linear(m))[:1]


def _last(layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    linears = [name for name, module in layers.items() if is_linear(module)]
    return tuple((linears or [*layers])[-1:])


def is_linear(layer: nn.Module) -> bool:
    """Say whether a layer, dense or sparse, is linear and not a convolution."""
    return isinstance(layer, nn.Linear | SparseLinear)


def is_pointwise(layer: nn.Module) -> bool:
    """Say whether a layer, dense or sparse, is a convolution whose kernel has one tap."""
    kernel: tuple[int, ...] = getattr(layer, "kernel_size", ())
    convolution = isinstance(layer, _ConvNd | SparseLayer)
    return convolution and bool(kernel) and math.prod(kernel) == 1


class _Tracer(ThreadTracer):
    """Traces through what holds layers, and takes everything else as one step."""

    def __init__(self, layers: set[nn.Module]) -> None:
        super().__init__()
        self._layers = layers
        self._conditions = 0

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        inside = any(it in self._layers for it in module.modules() if it is not module)
        return not inside or module in self._layers or super().is_leaf_module(module, name)

    def to_bool(self, obj: fx.Proxy) -> bool:
        # True passes assertions; a loop that waits for False must end.
        self._conditions += 1
        return self._conditions <= _MOST_CONDITIONS or super().to_bool(obj)

    def call_module(
        self, module: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        last = next(iter(reversed(self.graph.nodes)))
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:  # whatever a user's forward raises about an input without numbers
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            name = self.path_of_module(module)
            return self.create_proxy("call_module", name, args, kwargs)


def _traced(model: nn.Module, layers: set[nn.Module]) -> fx.Graph | None:
    """Trace a copy without numbers, so that neither state nor generators of the model move."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
            warnings.simplefilter("ignore")
            meta_model = copy_without_numbers(model)
            twins = dict(zip(model.modules(), meta_model.modules(), strict=True))
            parameters = inspect.signature(model.forward).parameters.values()
            defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
            found = {twins[layer] for layer in layers if layer in twins}
            return _Tracer(found).trace(meta_model, defaults)
    except Exception:  # as above; or the model cannot be copied
        return None


def copy_without_numbers(model: nn.Module) -> nn.Module:
    """Copy a model's structure; tensors are on the meta device, and no hook is left."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for tensor in held.values():
                if isinstance(tensor, Tensor):
                    meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                    trains = tensor.requires_grad
                    is_parameter = isinstance(tensor, nn.Parameter)
                    memo[id(tensor)] = nn.Parameter(meta, trains) if is_parameter else meta
    meta_model = copy.deepcopy(model, memo)
    for module in meta_model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return meta_model
