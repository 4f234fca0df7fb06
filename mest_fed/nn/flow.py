"""Where a model begins and ends: its stem and its head, found by the flow of data.

The stem reads the model's input, the head makes its output; both stay dense. A layer is a head if
no other layer reads what it makes, and a convolution is a stem if it reads what no layer made. A
model may have several of either.
"""

import copy
import inspect
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from mest_fed.nn.distributed import unwrapped
from mest_fed.nn.layers import SparseLinear

_MOST_CONDITIONS = 1000


class Ends(NamedTuple):
    """Names of the layers at a model's ends.

    A model that knows its own declares them as its attribute ``ends``; it is then not traced.
    """

    stem: tuple[str, ...]
    head: tuple[str, ...]


def find_ends(model: nn.Module, layers: Mapping[str, nn.Module]) -> Ends:
    """Find stem and head among a model's convolutions and linear layers.

    They are taken from what the model declares, else from a symbolic trace of its ``forward``,
    which runs on a copy without numbers; a condition on data is taken to hold. A module that cannot
    be traced counts as one step, whose layers run in the order in which they are defined.

    Parameters
    ----------
    model : nn.Module
        Any; it stays as it is.
    layers : mapping of str to nn.Module
        The layers by name, in order of definition.
    """
    root = unwrapped(model)
    declared: Ends | None = getattr(root, "ends", None)
    names = {module: name for name, module in layers.items()}
    if declared is not None:
        own = dict(root.named_modules())
        stem, head = ([own.get(name) for name in end] for end in declared)
        if all(module in names for module in (*stem, *head)):
            return Ends(*(tuple(names[m] for m in end if m is not None) for end in (stem, head)))
    graph = _traced(root, set(names))
    if graph is None:
        return Ends(_first_convolution(layers), _last(layers))
    kinds = dict(root.named_modules())
    return _ends_of(graph, {node: _run_by(node, kinds, names) for node in graph.nodes}, layers)


def _ends_of(
    graph: fx.Graph, run: Mapping[fx.Node, list[str]], layers: Mapping[str, nn.Module]
) -> Ends:
    stem: dict[str, None] = {}
    head: dict[str, None] = {}
    behind: dict[fx.Node, bool] = {}  # a layer
    for node in graph.nodes:
        behind[node] = any(behind[it] or run[it] for it in node.all_input_nodes)
        if run[node] and not behind[node]:
            stem |= dict.fromkeys(_first_convolution({n: layers[n] for n in run[node]}))
    before: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        before[node] = any(before[it] or run[it] for it in node.users)
        if run[node] and not before[node]:
            head |= dict.fromkeys(_last({n: layers[n] for n in run[node]}))
    return Ends(tuple(stem), tuple(head))


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


def _first_convolution(layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    return tuple(n for n, m in layers.items() if not is_linear(m))[:1]


def _last(layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    linears = [name for name, module in layers.items() if is_linear(module)]
    return tuple((linears or [*layers])[-1:])


def is_linear(layer: nn.Module) -> bool:
    """Say whether a layer, dense or sparse, is linear and not a convolution."""
    return isinstance(layer, nn.Linear | SparseLinear)


class _Tracer(fx.Tracer):
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
            return _Tracer({twins[layer] for layer in layers}).trace(meta_model, defaults)
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
