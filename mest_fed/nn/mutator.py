"""Mutation of a model and its optimizer, in place."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import nn

from mest_fed.nn.distributed import average, refuse_new_shape, running, unwrapped
from mest_fed.nn.groups import MaskGroup, mask_groups
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.optimizer_state import HasState, check_optimizer
from mest_fed.rng import torch_generator
from mest_fed.sparsity import Bounds, Interval, Mask, Method, grow, keep_best

#: Gives the generator of a group's growth; the same one to all who should grow the same.
GrowthGenerators = Callable[[str], torch.Generator]


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
        Mask group -> live granules at the target: what its layers say, whatever lives now.

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
        self.mutate(bounds, lambda name: torch_generator(seed, "growth", step, name))
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

    def _proposal(
        self, group: MaskGroup, generators: GrowthGenerators
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Layers that share a mask grow by the first one's gradient.
        gradient = group.layers[0].dense_gradient
        return self.method.growth_order(group.layout, generators(group.name), gradient)
