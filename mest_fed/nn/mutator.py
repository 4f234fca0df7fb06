"""Mutation of a model and its optimizer, in place."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mest_fed.errors import InputError
from mest_fed.nn.distributed import average, refuse_new_shape, running, unwrapped
from mest_fed.nn.identity import plain_tensors
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.optimizer_state import HasState, check_optimizer
from mest_fed.nn.stored import StoredLayer, read_layer
from mest_fed.rng import numpy_generator
from mest_fed.sparsity import Bounds, Interval, Layout, Mask, Method, grow, keep_best
from mest_fed.sparsity.arrays import Floats
from mest_fed.sparsity.mutation import Proposal
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
        """Active granules that the density stands for."""
        return self.layers[0].target

    def replace_mask(self, mask: Mask, optimizer: HasState | None = None) -> None:
        """Give every member the mask; see :meth:`SparseLayer.replace_mask`."""
        for layer in self.layers:
            layer.replace_mask(Mask(layer.layout, mask.slots), optimizer)

    def values(self) -> Floats:
        """Return all members' values side by side, shape ``(active, sum of widths)``."""
        return _side_by_side([layer.values.detach() for layer in self.layers])

    def gradients(self) -> Floats | None:
        """Return all members' value gradients side by side, or None where one is missing."""
        gradients = [layer.values.grad for layer in self.layers]
        present = [gradient for gradient in gradients if gradient is not None]
        return _side_by_side(present) if len(present) == len(gradients) else None


def _side_by_side(parts: list[Tensor]) -> Floats:
    with plain_tensors():
        arrays = [part.to("cpu", torch.float32).numpy() for part in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)


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
    """Turn the check of all masks before ``model.load_state_dict`` on or off."""
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


#: Gives the generator of a group's growth; the same one to all who should grow the same.
GrowthGenerators = Callable[[str], np.random.Generator]


class Mutator:
    """Mutates all mask groups of a model under one method.

    Momentum of what is dropped or grown is zero afterwards. The importance uses the gradients
    that stand in ``values.grad``, so mutate before they are cleared. Frozen layers keep their
    masks.

    Parameters
    ----------
    model : nn.Module
        A model after :func:`mest_fed.nn.sparsify`, or what wraps one: under
        ``DistributedDataParallel`` every process mutates alike, and counts must stay.
    method : Method
        What to drop and what to grow.
    optimizer : HasState or None
        Its state is edited with the values. Make it after ``sparsify``, of the model's parameters.

    Attributes
    ----------
    targets : dict of str to int
        Mask group -> active granules at the target, however many are active now.

    Raises
    ------
    InputError
        If the optimizer does not train the model's values, or keeps what mutation cannot edit;
        here and at each mutation.

    Examples
    --------
    Central training with MEST, three lines added to an ordinary loop::

        sparsify(model, "block", density=0.1)
        mutator = Mutator(model, MestEM(), optimizer)
        interval = Interval(steps=epochs)
        for epoch in range(epochs):
            mutator.step(epoch, interval, seed=0)
            train_one_epoch(model, optimizer)
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: HasState | None = None,
    ) -> None:
        model = unwrapped(model)
        self.groups = mask_groups(model)
        self.method = method
        self.optimizer = optimizer
        self.targets = {group.name: group.target for group in self.groups}
        self._layers = [(n, m) for n, m in model.named_modules() if isinstance(m, SparseLayer)]
        self._check()

    def step(self, step: int, interval: Interval, seed: int) -> bool:
        """Mutate if this step (epoch, counted from 0) is due; say whether it was.

        The last mutation of a run ends at the target, however short the run is.
        """
        if not interval.due(step):
            return False
        bounds = self.method.bounds(interval.progress(step))
        if interval.last(step):
            bounds = replace(bounds, ceiling=min(1.0, bounds.ceiling))
        self.mutate(bounds, lambda name: numpy_generator(seed, "growth", step, name))
        return True

    def keep_dense_gradients(self, keep: bool) -> None:
        """Have the next backward passes keep dense gradients, if the method reads them."""
        for group in self.groups:
            for layer in group.layers:
                layer.keep_dense_gradient = keep and self.method.needs_dense_gradient
                layer.dense_gradient = None

    def mutate(self, bounds: Bounds, generators: GrowthGenerators) -> None:
        """Drop to the floor, then grow to the ceiling."""

        def mutated(group: MaskGroup) -> Mask:
            return self.method.mutate(
                group.mask,
                self.method.importance(group.values(), group.gradients()),
                self._proposal(group, generators),
                self.targets[group.name],
                bounds,
            )

        leaders = [group.layers[0] for group in self._training()]
        kept = {it.values: it.dense_gradient for it in leaders if it.dense_gradient is not None}
        if kept:
            average(list(kept.values()), list(kept))
        self._replace(self._training(), mutated)
        self.keep_dense_gradients(False)

    def grow(self, bounds: Bounds, generators: GrowthGenerators) -> None:
        """Grow to the ceiling; nothing is dropped. Opens a soft-bounded round."""

        def grown(group: MaskGroup) -> Mask:
            count = bounds.ceiling_count(self.targets[group.name], group.layout)
            return grow(group.mask, count, self._proposal(group, generators))

        self._replace(self._training(), grown)

    def drop(self) -> None:
        """Drop to the target, old and new ranked together. Closes a soft-bounded round."""

        def kept(group: MaskGroup) -> Mask:
            importance = self.method.importance(group.values(), group.gradients())
            return keep_best(group.mask, importance, self.targets[group.name])

        self._replace(self.groups, kept)

    def _training(self) -> list[MaskGroup]:
        """Return the groups that train: what grows in another one would stay zero."""
        return [g for g in self.groups if any(it.values.requires_grad for it in g.layers)]

    def _check(self) -> None:
        for _, layer in self._layers:
            layer.check_mask_can_change()
        if self.optimizer is not None:
            check_optimizer(self.optimizer, self._layers)

    def _replace(self, groups: list[MaskGroup], new_mask: Callable[[MaskGroup], Mask]) -> None:
        self._check()
        masks: Iterable[tuple[MaskGroup, Mask]] = ((group, new_mask(group)) for group in groups)
        if running():  # all masks first, so that a refusal leaves the model as it is
            masks = list(masks)
            changed = [group for group, mask in masks if len(mask) != len(group.mask)]
            refuse_new_shape(layer.values for group in changed for layer in group.layers)
        for group, mask in masks:
            group.replace_mask(mask, self.optimizer)

    def _proposal(self, group: MaskGroup, generators: GrowthGenerators) -> Proposal:
        # Layers that share a mask grow by the first one's gradient.
        kept = group.layers[0].dense_gradient
        gradient = None if kept is None else kept.to("cpu", torch.float32).numpy()
        return self.method.growth_order(group.layout, generators(group.name), gradient)
