"""Mask groups: layers that live and die together. All but channel pairs are groups of one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.errors import InputError
from mest_fed.nn.identity import plain_tensors
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.optimizer_state import HasState
from mest_fed.nn.stored import StoredLayer, read_layer
from mest_fed.sparsity import Layout, Mask
from mest_fed.sparsity.schemes import Channel


def channel_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """List pairs of layers where the first alone makes the channels that the second alone reads.

    A module says so with a ``channel_pairs`` attribute, names relative to itself, as the residual
    blocks of :mod:`mest_fed.nn.models` do.
    """
    pairs: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        declared: tuple[tuple[str, str], ...] = getattr(module, "channel_pairs", ())
        pairs += [(prefix + leader, prefix + follower) for leader, follower in declared]
    return pairs


@dataclass(frozen=True)
class MaskGroup:
    """Layers that share one mask.

    Parameters
    ----------
    name : str
        Name of the first layer, under which the mask is known.
    layers : tuple of SparseLayer
        The members; the first one's layout stands for the group.
    """

    name: str
    layers: tuple[SparseLayer, ...]

    @property
    def layout(self) -> Layout:
        """The first member's layout."""
        return self.layers[0].layout

    @property
    def mask(self) -> Mask:
        """The shared mask."""
        return self.layers[0].mask

    @property
    def target(self) -> int:
        """Live granules that the density stands for."""
        return self.layers[0].target

    def replace_mask(self, mask: Mask, optimizer: HasState | None = None) -> None:
        """Give every member the mask; see :meth:`SparseLayer.replace_mask`."""
        for layer in self.layers:
            layer.replace_mask(Mask(layer.layout, mask.slots), optimizer)

    def values(self) -> Tensor:
        """Return all members' values side by side, shape ``(live, sum of widths)``."""
        with plain_tensors():
            return torch.cat([layer.values.detach() for layer in self.layers], dim=1)

    def gradients(self) -> Tensor | None:
        """Return all members' value gradients side by side, or None where one is missing."""
        gradients = [layer.values.grad for layer in self.layers]
        present = [gradient for gradient in gradients if gradient is not None]
        return torch.cat(present, dim=1) if len(present) == len(gradients) else None


def mask_groups(model: nn.Module) -> list[MaskGroup]:
    """Return the mask groups of a sparse model, in the order of its modules."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    leader_of = {
        follower: leader
        for leader, follower in channel_pairs(model)
        if leader in layers and follower in layers and _reads_channels(layers[follower])
    }
    members: dict[str, list[SparseLayer]] = {}
    for name, layer in layers.items():
        members.setdefault(leader_of.get(name, name), []).append(layer)
    return [MaskGroup(name, tuple(group)) for name, group in members.items()]


def _reads_channels(layer: SparseLayer) -> bool:
    """Say whether a layer's mask lists channels that it reads: those that its leader makes."""
    return isinstance(layer.layout, Channel) and layer.layout.axis == "in"


def match_masks(model: nn.Module, like: nn.Module) -> nn.Module:
    """Give a model the masks of another one, so that their values can be averaged row by row.

    Kept values stay, values that only the other model has start at zero. Call it after each
    mutation for a model that follows another one by weight averaging::

        if mutator.step(epoch, interval, seed=0):
            match_masks(averaged.module, model)
        averaged.update_parameters(model)

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    like : nn.Module
        A model with the same sparse layers.

    Returns
    -------
    nn.Module
        ``model``.

    Raises
    ------
    InputError
        If the models have other mask groups.
    """
    ours = {group.name: group for group in mask_groups(model)}
    theirs = {group.name: group for group in mask_groups(like)}
    described = [
        {name: [layer.layout for layer in group.layers] for name, group in groups.items()}
        for groups in (ours, theirs)
    ]
    if described[0] != described[1]:
        raise InputError("the models have other mask groups, so no mask of one fits the other")
    for name, group in ours.items():
        group.replace_mask(theirs[name].mask)
        for layer in group.layers:
            layer.target = theirs[name].target
    return model


def check_what_is_loaded(model: nn.Module, check: bool = True) -> None:
    """Have ``model.load_state_dict`` check all masks before it loads anything, or no longer."""
    hooks = model._load_state_dict_pre_hooks
    ours = [key for key, hook in hooks.items() if getattr(hook, "hook", None) is _check_masks]
    if check and not ours:
        model.register_load_state_dict_pre_hook(_check_masks)  # type: ignore[no-untyped-call]
    elif not check:
        for key in ours:
            del hooks[key]


def _check_masks(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse a state that a sparse layer refuses, or in which layers of a group disagree."""
    names = {module: name for name, module in model.named_modules()}
    for group in mask_groups(model):
        stored: list[tuple[str, StoredLayer]] = []
        for layer in group.layers:
            name = f"{prefix}{names[layer]}" + ("." if names[layer] else "")
            found = read_layer(layer.layout, state_dict, name)
            if found is not None:
                stored.append((name, found))
        for name, found in stored[1:]:
            if not torch.equal(found.slots, stored[0][1].slots):
                raise InputError(
                    f"{name}slots are not {stored[0][0]}slots, but these layers share one mask"
                )
