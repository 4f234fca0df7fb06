"""``sparsify``: make any module sparse in place. ``to_dense``: give the plain module back."""

import copy
import math

import torch
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn.groups import channel_pairs
from mest_fed.nn.layers import SparseConv2d, SparseLayer, SparseLinear
from mest_fed.sparsity import Layout, Mask, layer_counts, layout_for
from mest_fed.sparsity.schemes import Channel
from mest_fed.sparsity.select import magnitude_mask

Plain = nn.Conv2d | nn.Linear


def sparsifiable(model: nn.Module) -> dict[str, Plain]:
    """Return the layers that MEST makes sparse, by name.

    These are all convolutions and linear layers but the first convolution (the stem), 1x1
    convolutions (shortcuts), grouped convolutions, and the last linear layer (the classifier).
    A subclass may compute something else, so it stays as it is.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    convolutions = [n for n, m in layers.items() if isinstance(m, nn.Conv2d)]
    linears = [n for n, m in layers.items() if isinstance(m, nn.Linear)]
    dense = {*convolutions[:1], *linears[-1:]}
    return {n: m for n, m in layers.items() if n not in dense and not _stays_dense(m)}


def _stays_dense(layer: Plain) -> bool:
    if isinstance(layer, nn.Linear):
        return type(layer) is not nn.Linear
    return (
        type(layer) is not nn.Conv2d
        or math.prod(layer.kernel_size) == 1
        or layer.groups > 1
        or layer.padding_mode != "zeros"
        or isinstance(layer.padding, str)
    )


def sparsify(
    model: nn.Module,
    scheme: str = "block",
    density: float = 0.1,
    distribution: str = "uniform",
    *,
    keep_norm: bool = False,
) -> nn.Module:
    """Make a model's layers sparse, in place.

    The initial mask of each layer keeps the granules of largest magnitude of its weight, as MEST
    does with the random initialisation. Under the channel scheme, layers that face each other
    inside a residual block share one mask.

    Parameters
    ----------
    model : nn.Module
        Any module with ``Conv2d`` or ``Linear`` layers. See :func:`sparsifiable`.
    scheme : str
        ``unstructured``, ``block``, ``block:ROWS``, ``pattern`` or ``channel``.
    density : float
        Live weights / weights over the layers that become sparse, in (0, 1].
    distribution : str
        ``uniform`` or ``erk``.
    keep_norm : bool
        As for :meth:`Sparsifier.convert`.

    Returns
    -------
    nn.Module
        The same model.

    Raises
    ------
    InputError
        If scheme, density or distribution is not allowed, or no layer can be made sparse.
    """
    sparsifier = Sparsifier(model, scheme)
    sparsifier.count(density, distribution)
    for name in sparsifier.layouts:
        sparsifier.convert(name, keep_norm=keep_norm)
    return model


class Sparsifier:
    """Makes a model sparse layer by layer; a layer's dense weight is free once it is converted.

    Parameters
    ----------
    model : nn.Module
        Weights are read when their layer is converted, not before.
    scheme : str
        As for :func:`sparsify`.

    Attributes
    ----------
    layouts : dict
        Layer -> layout, in the model's order.

    Raises
    ------
    InputError
        If the scheme is not allowed, or no layer can be made sparse.
    """

    def __init__(self, model: nn.Module, scheme: str) -> None:
        self._model, self._layers = model, sparsifiable(model)
        if not self._layers:
            raise InputError(f"{type(model).__name__} has no layer that can be made sparse")
        self.layouts: dict[str, Layout] = {
            name: layout_for(scheme, tuple(layer.weight.shape))
            for name, layer in self._layers.items()
        }
        self._leaders: dict[str, str] = {}
        if scheme == "channel":
            for leader, follower in channel_pairs(model):
                if leader in self._layers and follower in self._layers:
                    self.layouts[follower] = Channel(self.layouts[follower].shape, axis="in")
                    self._leaders[follower] = leader
        self._counts: dict[str, int] = {}
        self._masks: dict[str, Mask] = {}

    def count(self, density: float, distribution: str) -> None:
        """Fix how many granules of each layer will live.

        Raises
        ------
        InputError
            If density or distribution is not allowed.
        """
        own = {name: it for name, it in self.layouts.items() if name not in self._leaders}
        self._counts = layer_counts(own, density, distribution)

    def convert(self, name: str, *, keep_norm: bool = False) -> None:
        """Convert a layer: the granules of largest magnitude live; a leader before its follower.

        Parameters
        ----------
        name : str
            Of the layer.
        keep_norm : bool
            Scale the live values up to the norm that the dense weight had, so that outputs keep
            their size. Without it, and without normalisation, the signal fades with each layer.
        """
        layer, layout = self._layers[name], self.layouts[name]
        if name in self._leaders:
            mask = Mask(layout, self._masks[self._leaders[name]].slots)
        else:
            mask = magnitude_mask(layout, layer.weight.detach(), self._counts[name])
        self._masks[name] = mask
        sparse = self._put(name, mask)
        if keep_norm:
            values = sparse.values.detach()
            norm = values.norm()
            if norm > 0:  # else the dense weight, too, is zero
                values.mul_(layer.weight.detach().norm() / norm)

    def empty(self, name: str) -> None:
        """Convert a layer to one in which nothing lives yet."""
        self._put(name, Mask(self.layouts[name], torch.empty(0, dtype=torch.int32)))

    def _put(self, name: str, mask: Mask) -> SparseLayer:
        layer = self._layers.pop(name)
        sparse = _sparse(self.layouts[name], mask, layer)
        sparse.mask_of = self._leaders.get(name)
        _replace(self._model, layer, sparse)
        return sparse


def to_dense(model: nn.Module) -> nn.Module:
    """Return a plain copy of a model: its ``state_dict`` loads into the model as first built."""
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        if isinstance(module, SparseConv2d | SparseLinear):
            _replace(plain, module, module.to_dense())
    return plain


def _sparse(layout: Layout, mask: Mask, layer: Plain) -> SparseLayer:
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d(layout, mask, layer)
    return SparseLinear(layout, mask, layer)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    # A module that is used in several places stands under several names.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
