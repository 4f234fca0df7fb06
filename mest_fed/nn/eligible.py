"""Which layers of a model are sparse, or can be, which stay dense, and why."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mest_fed.errors import InputError, not_allowed
from mest_fed.nn.attention import SparseAttention, projections
from mest_fed.nn.flow import find_ends, is_linear
from mest_fed.nn.layers import Plain, SparseLayer
from mest_fed.nn.products import SPARSE_CLASSES
from mest_fed.sparsity import matches

_PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Linear, SparseLayer)
#: How many modules an error names.
_SHOWN = 6
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Reason(StrEnum):
    """Why a layer is dense."""

    STEM = "stem: the first convolution"
    HEAD = "head: makes the model's output"
    SHORTCUT = "projection shortcut: 1x1 convolution beside other layers"
    KEPT = "kept dense on request"
    NOT_INCLUDED = "not among the layers to include"
    GROUPED = "grouped convolution"
    PADDING = "padding by name, or not by zeros"
    SUBCLASS = "a class of its own, which may compute something else"
    COMPUTED = "its weight or output is computed by something else (parametrization, pruning)"
    SHARED = "its weight is shared with another layer"
    NAME = "it has an attribute whose name the sparse layer needs"
    DTYPE = "its weight is not of a real floating-point type"
    KIND = "a kind of layer without a sparse form"
    PARAMETER = "a parameter of its own, in no layer"
    ELIGIBLE = "can be sparse"


def sparsifiable(
    model: nn.Module,
    keep_dense: Collection[str] = (),
    *,
    include: Collection[str] = (),
    exclude: Collection[str] = (),
) -> dict[str, Plain]:
    """Return the dense layers that MEST makes sparse, by name.

    These are all convolutions (1-D and 2-D) and linear layers but the stem, the head and projection
    shortcuts (see :mod:`mest_fed.nn.flow`), grouped convolutions, and whatever computes something
    else than the plain layer does; :class:`Reason` lists the cases. An attention's packed
    projections are named as its children, such as ``attention.in_proj``; they are returned as
    linear layers of the same weight.

    Parameters
    ----------
    model : nn.Module
        Any.
    keep_dense : collection of str
        An earlier name of ``exclude``; both count.
    include : collection of str
        Patterns (``fnmatch``) of the layers that may be sparse, or of modules that they are in;
        none for all.
    exclude : collection of str
        Patterns of modules that stay dense with everything in them.

    Raises
    ------
    InputError
        If a pattern names nothing, or one of ``include`` only layers that cannot be sparse, or a
        lazy layer has no shape yet.
    """
    return eligible(model, reasons_of(model, Selection(keep_dense, include, exclude)))


@dataclass(frozen=True)
class Selection:
    """Which layers a user wants sparse; parameters as for :func:`sparsifiable`.

    ``section`` is where errors say that a pattern stands, such as ``sparsity.``.
    """

    keep_dense: Collection[str] = ()
    include: Collection[str] = ()
    exclude: Collection[str] = ()
    section: str = ""

    def __post_init__(self) -> None:
        for key in ("keep_dense", "include", "exclude"):
            given = getattr(self, key)
            patterns = (given,) if isinstance(given, str) else tuple(given)  # one may stand alone
            object.__setattr__(self, key, patterns)


class Place(NamedTuple):
    """A layer, and where it stands.

    Parameters
    ----------
    layer : nn.Module
        Convolution or linear layer, dense or sparse. For a packed projection that is dense, a
        linear layer of the same weight.
    owner : nn.MultiheadAttention or None
        The attention of which it is a projection.
    """

    layer: nn.Module
    owner: nn.MultiheadAttention | None


def places(model: nn.Module) -> dict[str, Place]:
    """Return the convolutions and linear layers of a model, packed projections among them."""
    found: dict[str, Place] = {}
    owners: dict[nn.Module, nn.MultiheadAttention] = {}
    for name, module in model.named_modules():
        if isinstance(module, _PRODUCTS):
            found[name] = Place(module, owners.get(module))
        elif isinstance(module, nn.MultiheadAttention):
            for leaf, linear in projections(module).items():
                found[f"{name}.{leaf}".lstrip(".")] = Place(linear, module)
            owners |= dict.fromkeys(module.children(), module)
    return found


def eligible(model: nn.Module, reasons: Mapping[str, Reason]) -> dict[str, Plain]:
    """Return the layers that can be made sparse, in the model's order."""
    layers = {name: place.layer for name, place in places(model).items()}
    return {
        name: cast(Plain, layers[name])
        for name, reason in reasons.items()
        if reason is Reason.ELIGIBLE
    }


def reasons_of(model: nn.Module, selection: Selection | None = None) -> dict[str, Reason]:
    """Say of each dense convolution and linear layer why it stays dense, or that it need not."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(f"parameter {name} is lazy and has no shape yet; run the model once")
    found, shared = places(model), _shared_weights(model)
    reasons = {
        name: _reason(name, place, shared)
        for name, place in found.items()
        if not isinstance(place.layer, SparseLayer)
    }
    _keep_ends(model, {name: place.layer for name, place in found.items()}, reasons)
    if selection is not None:
        _select(model, selection, reasons)
    return reasons


def _keep_ends(
    model: nn.Module, layers: Mapping[str, nn.Module], reasons: dict[str, Reason]
) -> None:
    """Keep stem, head and projection shortcuts dense."""
    modules = dict(model.named_modules())
    ends = find_ends(model, {name: it for name, it in layers.items() if name in modules})
    outer = {*ends.stem, *ends.head, *(ends.shortcuts or ())}
    open_layers = {name for name, reason in reasons.items() if reason is Reason.ELIGIBLE}
    inner = open_layers - outer
    if not inner and len(reasons) == len(layers):
        # Nothing but ends: a convolution at the output, which is no classifier, may be sparse.
        inner = {n for n in open_layers.difference(ends.stem) if not is_linear(layers[n])}
        inner -= set(ends.shortcuts or ())
    named = ((ends.shortcuts or (), Reason.SHORTCUT), (ends.head, Reason.HEAD))
    for names, reason in (*named, (ends.stem, Reason.STEM)):
        reasons.update(dict.fromkeys(set(names) & reasons.keys() - inner, reason))


def _select(model: nn.Module, selection: Selection, reasons: dict[str, Reason]) -> None:
    """Keep dense what a user excludes, or does not include."""
    for key in ("keep_dense", "exclude"):
        for pattern in getattr(selection, key):
            for name in layers_named(model, selection.section + key, pattern, of_any_kind=True):
                if name in reasons:
                    reasons[name] = Reason.KEPT
    if selection.include:
        included = {
            name
            for pattern in selection.include
            for name in layers_named(model, f"{selection.section}include", pattern, reasons)
        }
        for name, reason in reasons.items():
            if reason is Reason.ELIGIBLE and name not in included:
                reasons[name] = Reason.NOT_INCLUDED


def layers_named(
    model: nn.Module,
    key: str,
    pattern: str,
    reasons: Mapping[str, Reason] | None = None,
    *,
    of_any_kind: bool = False,
) -> list[str]:
    """Return the layers that a pattern names, by themselves or with a module that they are in.

    Parameters
    ----------
    model : nn.Module
        Any.
    key : str
        What the pattern was given as, for the error's text.
    pattern : str
        See :func:`mest_fed.sparsity.matches`.
    reasons : mapping of str to Reason, optional
        Why layers are dense.
    of_any_kind : bool
        Whether it may name layers that cannot be sparse.

    Raises
    ------
    InputError
        If it names no module, or no layer that is sparse or can be.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    layers: dict[str, list[str]] = {}
    for name, place in places(model).items():
        leaf = name.rpartition(".")[2]
        outer = names[place.owner] if place.owner is not None else []
        layers[name] = names.get(place.layer) or [f"{it}.{leaf}".lstrip(".") for it in outer]
    found = [n for n, aliases in layers.items() if any(matches(pattern, it) for it in aliases)]
    every = [it for aliases in (*names.values(), *layers.values()) for it in aliases]
    if not found and not any(matches(pattern, it) for it in every if it):
        raise matches_nothing(key, pattern, list(layers))
    if of_any_kind:
        return found
    reasons = reasons or {}
    good = [it for it in found if reasons.get(it, Reason.ELIGIBLE) is Reason.ELIGIBLE]
    if not good:
        why = f": {found[0]} stays dense ({reasons[found[0]]})" if found else ""
        raise not_allowed(key, pattern, f"layers that can be sparse{why}")
    return good


def matches_nothing(key: str, pattern: str, names: Collection[str]) -> InputError:
    """Build the error for a pattern that names no module; it shows some of those that there are."""
    near = get_close_matches(pattern, names, n=_SHOWN)
    shown = list(dict.fromkeys([*near, *names]))
    there = ", ".join([*shown[:_SHOWN], *(["..."] if len(shown) > _SHOWN else [])])
    return InputError(
        f"{key} = {pattern!r} matches no module of the model; allowed: names of modules, or "
        f"patterns that match some: {there or 'it has none'}"
    )


def is_packed(place: Place) -> bool:
    """Say whether an attention itself holds the layer's weight."""
    return place.owner is not None and place.layer not in place.owner._modules.values()


def _reason(name: str, place: Place, shared: set[int]) -> Reason:
    layer, owner = place
    packed = is_packed(place)
    holder: nn.Module = owner if packed and owner is not None else layer
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        if layer.groups > 1:
            return Reason.GROUPED
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return Reason.PADDING
    if not {"weight", "bias"} <= layer._parameters.keys() or "forward" in vars(holder):
        return Reason.COMPUTED
    weight = layer._parameters["weight"]
    known = (nn.MultiheadAttention, SparseAttention) if packed else tuple(SPARSE_CLASSES)
    if type(holder) not in known or type(weight) is not nn.Parameter:
        return Reason.SUBCLASS
    if _identity(weight) in shared:
        return Reason.SHARED
    names = {*vars(holder), *holder._parameters, *holder._buffers, *holder._modules}
    if packed:
        taken = name.rpartition(".")[2] in names
    else:
        taken = bool(
            (names - {"weight", "bias"}) & SPARSE_CLASSES[type(cast(Plain, layer))].names()
        )
    if taken:
        return Reason.NAME
    return Reason.ELIGIBLE if weight.dtype in _DTYPES else Reason.DTYPE


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
