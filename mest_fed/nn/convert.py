"""``sparsify``: make any module sparse in place."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn

from mest_fed.errors import DensityWarning, InputError, not_allowed
from mest_fed.nn.attention import PROJECTIONS, SparseAttention, projections
from mest_fed.nn.densities import LayerDensity, densities, whole_density
from mest_fed.nn.distributed import data_parallel
from mest_fed.nn.eligible import (
    Reason,
    Selection,
    eligible,
    layers_named,
    places,
    reasons_of,
)
from mest_fed.nn.identity import active_values
from mest_fed.nn.layers import Plain, SparseLayer
from mest_fed.nn.mutator import channel_pairs, check_what_is_loaded
from mest_fed.nn.products import SPARSE_CLASSES
from mest_fed.sparsity import (
    Layout,
    Mask,
    format_distribution,
    layer_counts,
    layout_for,
    parse_distribution,
)
from mest_fed.sparsity.arrays import Slots
from mest_fed.sparsity.mask import magnitude_mask
from mest_fed.sparsity.schemes import Channel

#: ``sparsify`` warns if the whole model's density exceeds this multiple of the density asked for,
#: and this density, unless so few weights stay dense that no device would notice them.
_FAR_TIMES, _FAR_FROM, _NOTICED = 2.0, 0.35, 1000


def sparsify(
    model: nn.Module,
    scheme: str = "block",
    density: float = 0.1,
    distribution: str = "uniform",
    *,
    keep_norm: bool = False,
    include: Collection[str] = (),
    exclude: Collection[str] = (),
    layers: Mapping[str, float] | None = None,
    keep_dense: Collection[str] = (),
) -> nn.Module:
    """Make a model's layers sparse, in place.

    The initial mask of each layer keeps the granules of largest magnitude of its weight, as MEST
    does with the random initialisation. Under the channel scheme, layers that face each other
    inside a residual block share one mask.

    A layer stays the same object: hooks, attributes, its device, type and mode, and whether its
    weight trains, stay as they are. The optimizer must be made afterwards.

    Parameters
    ----------
    model : nn.Module
        Any module with ``Conv1d``, ``Conv2d``, ``Linear`` or ``MultiheadAttention`` layers. See
        :func:`sparsifiable`.
    scheme : str
        ``unstructured``, ``block``, ``block:ROWS``, ``pattern`` or ``channel``.
    density : float
        Active weights / weights over the layers that become sparse without a density of their own,
        in (0, 1].
    distribution : str
        ``uniform`` or ``erk``.
    keep_norm : bool
        As for :meth:`Sparsifier.convert`.
    include, exclude, keep_dense : collection of str
        Patterns of layers that may be sparse, and of modules that stay dense; see
        :func:`sparsifiable`.
    layers : mapping of str to float
        Pattern -> density of the layers that it names, by themselves or with a module that they are
        in. The first pattern that names a layer decides.

    Returns
    -------
    nn.Module
        The same model.

    Raises
    ------
    InputError
        If scheme, density, distribution or a name is not allowed, no layer can be made sparse, or
        the model is wrapped by ``DistributedDataParallel`` already. The model is then as before.

    Warns
    -----
    DensityWarning
        If layers that stay dense hold so much of the model that its whole density is far above
        ``density``. :func:`layer_densities` lists them.
    """
    sparsifier = Sparsifier(model, scheme, Selection(keep_dense, include, exclude))
    sparsifier.count(density, format_distribution(distribution, layers or {}))
    # All that can fail comes before the first change.
    for part in [sparsifier.part(name, keep_norm=keep_norm) for name in sparsifier.layouts]:
        part.convert()
    rows = densities(model, sparsifier.reasons)
    dense = sum(row.weights for row in rows if row.reason is not None)
    asked = max(density, whole_density([row for row in rows if row.reason is None]))
    if whole_density(rows) > max(_FAR_TIMES * asked, _FAR_FROM) and dense > _NOTICED:
        warnings.warn(_above(type(model).__name__, density, rows), DensityWarning, stacklevel=2)
    return model


@dataclass(frozen=True)
class Part:
    """A dense layer, and what it will be as a sparse one.

    Parameters
    ----------
    name : str
        Its name in the model.
    layer : nn.Conv1d, nn.Conv2d or nn.Linear
        The dense layer.
    owner : nn.MultiheadAttention or None
        The attention of which it is a projection.
    mask : Mask
        Which slots of its layout are active.
    values : Parameter
        Their values.
    """

    name: str
    layer: Plain
    owner: nn.MultiheadAttention | None
    mask: Mask
    values: nn.Parameter

    def convert(self) -> SparseLayer:
        """Turn the layer into the sparse one."""
        kind = SPARSE_CLASSES[type(self.layer)]
        sparse = kind.convert(self.layer, self.mask.layout, self.mask, self.values)
        if self.owner is not None and type(self.owner) in (nn.MultiheadAttention, SparseAttention):
            SparseAttention.adopt(self.owner, self.name.rpartition(".")[2], sparse)
        return sparse


class Sparsifier:
    """Makes a model sparse layer by layer; a layer's dense weight is free once it is converted.

    Parameters
    ----------
    model : nn.Module
        Weights are read when their layer is converted, not before.
    scheme : str
        As for :func:`sparsify`.
    selection : Selection, optional
        Which layers may be sparse; all by default.

    Attributes
    ----------
    layouts : dict
        Layer -> layout, in the model's order.
    reasons : dict
        Dense convolution or linear layer, as the model was -> why it stays dense, or that it can
        be sparse.

    Raises
    ------
    InputError
        As for :func:`sparsify`.
    """

    def __init__(self, model: nn.Module, scheme: str, selection: Selection | None = None) -> None:
        self.model = model
        self._key = f"{selection.section if selection else ''}layers"
        self.reasons = reasons_of(model, selection)
        layers = eligible(model, self.reasons)
        self._owners = {
            name: place.owner for name, place in places(model).items() if place.owner is not None
        }
        if not layers:
            raise InputError(_nothing_to_convert(model, densities(model, self.reasons)))
        if data_parallel(model.parameters()) is not None:
            raise InputError("make a model sparse before DistributedDataParallel wraps it")
        self.layouts: dict[str, Layout] = {
            name: layout_for(scheme, tuple(layer.weight.shape)) for name, layer in layers.items()
        }
        self._leaders: dict[str, str] = {}
        if any(isinstance(layout, Channel) for layout in self.layouts.values()):
            for leader, follower in channel_pairs(model):
                if leader in layers and follower in layers:
                    self.layouts[follower] = Channel(self.layouts[follower].shape, axis="in")
                    self._leaders[follower] = leader
        self._counts: dict[str, int] = {}
        self._masks: dict[str, Mask] = {}
        check_what_is_loaded(model)

    def count(self, density: float, distribution: str) -> None:
        """Fix how many granules of each layer become active.

        Raises
        ------
        InputError
            If density or distribution is not allowed, or a pattern in it names no layer that can be
            sparse, or only layers that share the mask of one that it does not name.
        """
        self.check_names(distribution)
        own = {name: it for name, it in self.layouts.items() if name not in self._leaders}
        self._counts = layer_counts(own, density, distribution)

    def check_names(self, distribution: str) -> None:
        """Refuse a distribution with a density for what is no sparse layer; see :meth:`count`."""
        for pattern in parse_distribution(distribution)[1]:
            named = layers_named(self.model, self._key, pattern, self.reasons)
            leaders = {self._leaders.get(name, name) for name in named}
            if not leaders & set(named):
                raise not_allowed(
                    self._key, pattern, f"{min(leaders)}, whose mask {named[0]} shares"
                )

    def convert(self, name: str, *, keep_norm: bool = False) -> None:
        """Convert a layer: the largest granules become active; a leader before its follower.

        Parameters
        ----------
        name : str
            Of the layer.
        keep_norm : bool
            Scale the active values up to the norm that the dense weight had, so that outputs keep
            their size. Without it, and without normalisation, the signal fades with each layer.
        """
        self.part(name, keep_norm=keep_norm).convert()

    def choose(self, masks: Mapping[str, Slots]) -> None:
        """Fix which granules of some layers become active, where the largest ones should not."""
        self._masks |= {name: Mask(self.layouts[name], slots) for name, slots in masks.items()}

    def part(self, name: str, *, keep_norm: bool = False) -> Part:
        """Decide what a layer will be; it stays as it is. See :meth:`convert`.

        Raises
        ------
        InputError
            If the layer is on the meta device: it has no numbers to choose by.
        """
        layer, layout = self._layer(name), self.layouts[name]
        weight = layer.get_parameter("weight")
        if weight.is_meta:
            raise InputError(f"layer {name} is on the meta device and has no weights to choose by")
        if name in self._leaders:
            mask = Mask(layout, self._masks[self._leaders[name]].slots)
        elif name in self._masks:
            mask = self._masks[name]
        else:
            dense = weight.detach().to("cpu", torch.float32).numpy()
            mask = magnitude_mask(layout, dense, self._counts[name])
        self._masks[name] = mask
        values = active_values(layout, mask, weight)
        if keep_norm:
            norm = values.detach().norm()
            if norm > 0:  # else the dense weight, too, is zero
                values.detach().mul_(weight.detach().norm() / norm)
        return Part(name, layer, self._owners.get(name), mask, values)

    def empty(self, name: str) -> None:
        """Convert a layer without active granules."""
        layer = self._layer(name)
        mask = Mask(self.layouts[name], np.empty(0, np.int32))
        values = active_values(mask.layout, mask, layer.get_parameter("weight"))
        Part(name, layer, self._owners.get(name), mask, values).convert()

    def of(self, module_name: str) -> list[str]:
        """Return the layers whose weights a module holds: itself, or its packed projections."""
        own = [module_name] if module_name in self.layouts else []
        prefix = f"{module_name}." if module_name else ""
        packed = (f"{prefix}{leaf}" for leaf in PROJECTIONS.values())
        return own + [name for name in packed if name in self.layouts and name in self._owners]

    def _layer(self, name: str) -> Plain:
        """Return a dense layer; a packed projection as a linear layer of the same weight."""
        leaf = name.rpartition(".")[2]
        owner = self._owners.get(name)
        if owner is None or leaf in owner._modules:
            return cast(Plain, self.model.get_submodule(name))
        return projections(owner)[leaf]


def _nothing_to_convert(model: nn.Module, rows: Sequence[LayerDensity]) -> str:
    sparse = sum(row.reason is None for row in rows)
    parts = [f"sparse already: {sparse}"] if sparse else []
    parts += _largest(rows)
    why = f": {', '.join(parts)}" if parts else ""
    return f"{type(model).__name__} has no layer that can be made sparse{why}"


def _above(name: str, density: float, rows: Sequence[LayerDensity]) -> str:
    weights = sum(row.weights for row in rows)
    dense = sum(row.weights for row in rows if row.reason is not None)
    return (
        f"{name} was asked to be sparse at density {density:g}, and has {whole_density(rows):.2f} "
        f"as a whole: {dense} of {weights} weights stay dense: {', '.join(_largest(rows))}; "
        "layer_densities lists all"
    )


def _largest(rows: Sequence[LayerDensity], most: int = 4) -> list[str]:
    """Name the largest kinds of dense parts, each with its largest layer."""
    parts: dict[Reason, list[LayerDensity]] = {}
    for row in rows:
        if row.reason is not None:
            parts.setdefault(row.reason, []).append(row)
    sizes = {reason: sum(row.weights for row in part) for reason, part in parts.items()}
    words = []
    for reason in sorted(parts, key=lambda it: -sizes[it])[:most]:
        first = max(parts[reason], key=lambda row: row.weights)
        count = len(parts[reason])
        where = first.name or first.kind
        where += f" and {count - 1} more" if count > 1 else ""
        words.append(f"{sizes[reason]} in {where} ({reason})")
    return words
