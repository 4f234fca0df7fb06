"""``to_dense``: give the plain model back, made of torch's own modules alone.

Layers of ours become torch's by a change of their class. Modules whose ``forward`` calls fused
operators of ours (they say so by ``calls_fused``) become a ``torch.fx.GraphModule``, which has the
same children under the same names and calls torch's operators instead. The result is pickled,
traced and exported as any model is, and loads where mest-fed is not installed.
"""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from mest_fed.nn.attention import SparseAttention
from mest_fed.nn.dense import Conv2d, ReLUMaxPool2d
from mest_fed.nn.distributed import unwrapped
from mest_fed.nn.identity import inherit
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.mutator import check_what_is_loaded
from mest_fed.nn.norms import BatchNorm2d, GroupNorm
from mest_fed.nn.tracing_threads import ThreadTracer

_TORCHS: dict[type[nn.Module], type[nn.Module]] = {
    BatchNorm2d: nn.BatchNorm2d,
    GroupNorm: nn.GroupNorm,
    Conv2d: nn.Conv2d,
}


def to_dense(model: nn.Module) -> nn.Module:
    """Return a plain copy of a model: its ``state_dict`` loads into the model as first built.

    It computes the same in training and evaluation, and has the hooks, attributes, mode, types,
    tied and frozen parameters of the model; gradients are not copied. Wrappers such as
    ``DistributedDataParallel`` and ``torch.compile`` are left out.

    Parameters
    ----------
    model : nn.Module
        Any; it stays as it is. Modules of a user's own class keep that class.
    """
    plain = _copied(unwrapped(model))
    for module in plain.modules():
        check_what_is_loaded(module, False)
    for module in list(plain.modules()):
        if getattr(module, "calls_fused", False):
            graph_module = _as_graph(module)
            if module is plain:
                plain = graph_module
            _replace(plain, module, graph_module)
    weights: dict[tuple[Any, ...], nn.Parameter] = {}
    for module in list(plain.modules()):
        _to_torchs(module, weights)
    return plain


def _copied(model: nn.Module) -> nn.Module:
    """Copy a model, and what ``deepcopy`` leaves out: what hangs on its parameters."""
    # Old weight norm and pruning keep a weight that is no leaf, which cannot be copied.
    computed = {
        id(held): held.detach().clone()
        for module in model.modules()
        for held in vars(module).values()
        if isinstance(held, Tensor) and held.grad_fn is not None
    }
    copied = copy.deepcopy(model, computed)
    for parameter, twin in zip(model.parameters(), copied.parameters(), strict=True):
        inherit(twin, parameter, shared=False)
    return copied


def _to_torchs(module: nn.Module, weights: dict[tuple[Any, ...], nn.Parameter]) -> None:
    """Make one module torch's own, in place; see ``SparseLayer.restore`` for ``weights``."""
    if isinstance(module, SparseLayer | SparseAttention):
        module.restore(weights)
    elif type(module) in _TORCHS:
        vars(module).pop("fused", None)
        module.__class__ = _TORCHS[type(module)]
    elif type(module) is ReLUMaxPool2d:
        vars(module).pop("fused", None)
        both: nn.Module = module
        both.__class__ = nn.Sequential
        both.add_module("0", nn.ReLU())
        both.add_module("1", nn.MaxPool2d(2))


def _as_graph(module: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    graph = tracer.trace(module)
    graph._tracer_cls = None  # which is ours, and would be named in a pickle
    traced = fx.GraphModule(module, graph, type(module).__name__)
    vars(traced).update(vars(module))
    return traced


class _Tracer(ThreadTracer):
    """Traces one module; its children are steps, and fused operators several."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) is not nn.Sequential

    def call_module(
        self, module: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not isinstance(module, BatchNorm2d | GroupNorm):
            return super().call_module(module, forward, args, kwargs)
        return self._norm(module, *args, **kwargs)

    def _norm(self, norm: nn.Module, x: Any, residual: Any = None, relu: bool = False) -> fx.Proxy:
        y: Any = self.create_proxy("call_module", self.path_of_module(norm), (x,), {})
        if residual is not None:
            y = y + residual
        return self.create_proxy("call_function", torch.relu, (y,), {}) if relu else y


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    # A module that is used in several places stands under several names.
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
