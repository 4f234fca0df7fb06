"""``sparsify``: make any module sparse in place. ``to_dense``: give the plain module back."""

import copy
import math

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

    Returns
    -------
    nn.Module
        The same model.

    Raises
    ------
    InputError
        If scheme, density or distribution is not allowed, or no layer can be made sparse.
    """
    layers = sparsifiable(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no layer that can be made sparse")
    layouts: dict[str, Layout] = {
        name: layout_for(scheme, tuple(layer.weight.shape)) for name, layer in layers.items()
    }
    followers: dict[str, str] = {}
    if scheme == "channel":
        for leader, follower in channel_pairs(model):
            if leader in layers and follower in layers:
                layouts[follower] = Channel(layouts[follower].shape, axis="in")
                followers[follower] = leader
    leaders = {name: layout for name, layout in layouts.items() if name not in followers}
    counts = layer_counts(leaders, density, distribution)
    masks = {
        name: magnitude_mask(layout, layers[name].weight.detach(), counts[name])
        for name, layout in leaders.items()
    }
    for name, leader in followers.items():
        masks[name] = Mask(layouts[name], masks[leader].slots)
    for name, layer in layers.items():
        sparse = _sparse(layouts[name], masks[name], layer)
        sparse.mask_of = followers.get(name)
        _replace(model, layer, sparse)
    return model


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
