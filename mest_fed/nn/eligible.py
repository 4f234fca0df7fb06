"""Which layers of a model are sparse, or can be, which stay dense, and why."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mest_fed.errors import InputError, not_allowed
from mest_fed.nn.flow import find_ends, is_linear
from mest_fed.nn.layers import Plain, SparseConv2d, SparseLayer, SparseLinear

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Reason(StrEnum):
    """Why a layer is dense."""

    STEM = "stem: the first convolution"
    HEAD = "head: makes the model's output"
    KEPT = "kept dense on request"
    POINTWISE = "1x1 convolution"
    GROUPED = "grouped convolution"
    PADDING = "padding by name, or not by zeros"
    SUBCLASS = "a class of its own, which may compute something else"
    COMPUTED = "its weight or output is computed by something else (parametrization, pruning)"
    SHARED = "its weight is shared with another layer"
    NAME = "it has an attribute whose name the sparse layer needs"
    DTYPE = "its weight is not of a real floating-point type"
    KIND = "a kind of layer without a sparse form"
    ELIGIBLE = "can be sparse"


@dataclass(frozen=True)
class LayerDensity:
    """A layer's weights, and how many of them are active.

    Biases, and scales of normalisations, are not counted: only parameters of two dimensions or
    more. A weight that several layers share is counted with the first of them.

    Parameters
    ----------
    name : str
        In the model; empty for the model itself.
    kind : str
        Name of the layer's class.
    weights : int
        All weights.
    active : int
        Those that are not fixed at zero by a mask.
    reason : Reason or None
        Why it is dense; None for a sparse layer.
    """

    name: str
    kind: str
    weights: int
    active: int
    reason: Reason | None

    @property
    def density(self) -> float:
        """Active weights / weights; 1 without any."""
        return self.active / self.weights if self.weights else 1.0


def sparsifiable(model: nn.Module, keep_dense: Collection[str] = ()) -> dict[str, Plain]:
    """Return the dense layers that MEST makes sparse, by name.

    These are all convolutions and linear layers but the stem and the head (see
    :mod:`mest_fed.nn.flow`), 1x1 convolutions (shortcuts), grouped convolutions, and whatever
    computes something else than the plain layer does; :class:`Reason` lists the cases.

    Parameters
    ----------
    model : nn.Module
        Any.
    keep_dense : collection of str
        Names of modules that stay dense with everything in them.

    Raises
    ------
    InputError
        If a name in ``keep_dense`` is no module of the model, or a lazy layer has no shape yet.
    """
    return eligible(model, reasons_of(model, keep_dense))


def layer_densities(model: nn.Module, keep_dense: Collection[str] = ()) -> list[LayerDensity]:
    """List the layers that hold weights: how dense each is, and why it is dense.

    Parameters and errors are those of :func:`sparsifiable`. The sum of ``active`` over that of
    ``weights`` is the density of the whole model.
    """
    return densities(model, reasons_of(model, keep_dense))


def eligible(model: nn.Module, reasons: Mapping[str, Reason]) -> dict[str, Plain]:
    """Return the layers that can be made sparse, in the model's order."""
    names = [name for name, reason in reasons.items() if reason is Reason.ELIGIBLE]
    layers = ((name, model.get_submodule(name)) for name in names)
    return {n: m for n, m in layers if isinstance(m, nn.Conv2d | nn.Linear)}


def densities(model: nn.Module, reasons: Mapping[str, Reason]) -> list[LayerDensity]:
    """Count weights layer by layer, with reasons that are known already."""
    counted, rows = set[int](), []
    for name, module in model.named_modules():
        reason: Reason | None = reasons.get(name, Reason.KIND)
        if isinstance(module, SparseLayer):
            reason, weights = None, module.layout.num_weights
            active = module.layout.active_weights(module.slots)
        else:
            # A layer's parametrizations are its children, and hold its weight.
            own = module.parameters(recurse=name in reasons)
            new = {id(it): it.numel() for it in own if it.dim() > 1 and id(it) not in counted}
            counted |= set(new)
            weights = active = sum(new.values())
        if weights or name in reasons:
            rows.append(LayerDensity(name, type(module).__name__, weights, active, reason))
    return rows


def whole_density(rows: Collection[LayerDensity]) -> float:
    """Return active weights / weights over all layers of a model; 1 without any."""
    weights = sum(row.weights for row in rows)
    return sum(row.active for row in rows) / weights if weights else 1.0


def reasons_of(model: nn.Module, keep_dense: Collection[str] = ()) -> dict[str, Reason]:
    """Say of each dense convolution and linear layer why it stays dense, or that it need not."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(f"parameter {name} is lazy and has no shape yet; run the model once")
    layers = _products(model)
    kept = _beneath(model, keep_dense)
    shared = _shared_weights(model)
    ends = find_ends(model, layers)
    dense = {n: m for n, m in layers.items() if not isinstance(m, SparseLayer)}
    reasons = {name: _reason(module, kept, shared) for name, module in dense.items()}
    open_layers = {name for name, reason in reasons.items() if reason is Reason.ELIGIBLE}
    inner = open_layers.difference(ends.stem, ends.head)
    if not inner and len(dense) == len(layers):
        # Nothing but ends: a convolution at the output, which is no classifier, may be sparse.
        inner = {n for n in open_layers.difference(ends.stem) if not is_linear(layers[n])}
    for name in dense.keys() - inner:
        if reasons[name] is not Reason.KEPT:
            if name in ends.head:
                reasons[name] = Reason.HEAD
            if name in ends.stem:
                reasons[name] = Reason.STEM
    return reasons


def _products(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Conv2d, nn.Linear, SparseLayer)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds)}


def _reason(layer: nn.Module, kept: set[nn.Module], shared: set[int]) -> Reason:
    if layer in kept:
        return Reason.KEPT
    if isinstance(layer, nn.Conv2d):
        if math.prod(layer.kernel_size) == 1:
            return Reason.POINTWISE
        if layer.groups > 1:
            return Reason.GROUPED
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return Reason.PADDING
    if not {"weight", "bias"} <= layer._parameters.keys() or "forward" in vars(layer):
        return Reason.COMPUTED
    weight = layer._parameters["weight"]
    if type(layer) not in (nn.Conv2d, nn.Linear) or type(weight) is not nn.Parameter:
        return Reason.SUBCLASS
    if _identity(weight) in shared:
        return Reason.SHARED
    sparse = SparseLinear if isinstance(layer, nn.Linear) else SparseConv2d
    names = {*vars(layer), *layer._parameters, *layer._buffers, *layer._modules}
    if (names - {"weight", "bias"}) & sparse.names():
        return Reason.NAME
    return Reason.ELIGIBLE if weight.dtype in _DTYPES else Reason.DTYPE


def _beneath(model: nn.Module, names: Collection[str]) -> set[nn.Module]:
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules or not name:
            raise not_allowed("keep_dense", name, "names of modules of the model")
    return {module for name in names for module in modules[name].modules()}


def _shared_weights(model: nn.Module) -> set[int]:
    """Return which weights stand in more than one place, as they are or transposed."""
    places = Counter(
        _identity(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    return {identity for identity, count in places.items() if count > 1}


def _identity(tensor: Tensor) -> int:
    """Tell tensors apart that do not begin at the same address."""
    return id(tensor) if tensor.is_meta or tensor.numel() == 0 else tensor.data_ptr()
