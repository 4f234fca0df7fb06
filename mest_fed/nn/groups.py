"""Mask groups: layers that live and die together. All but channel pairs are groups of one."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mest_fed.nn.layers import HasState, SparseLayer
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

    def replace_mask(self, mask: Mask, optimizer: HasState | None = None) -> None:
        """Give every member the mask; see :meth:`SparseLayer.replace_mask`."""
        for layer in self.layers:
            layer.replace_mask(Mask(layer.layout, mask.slots), optimizer)

    def values(self) -> Tensor:
        """Return all members' values side by side, shape ``(live, sum of widths)``."""
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
