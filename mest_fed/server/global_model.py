"""The global model: its weights and mask, the nested masks of the tiers, and its mutation."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mest_fed.rng import numpy_generator
from mest_fed.server.aggregation.aggregate import Aggregate
from mest_fed.server.optimizers import ServerOptimizer
from mest_fed.sparsity import Mask, Method, keep_best, layer_counts, nested_order
from mest_fed.sparsity.arrays import Floats, Slots, norms
from mest_fed.sparsity.state import ModelSpec, SparseState, corners

MaskSet = dict[str, Slots]


@dataclass
class GlobalModel:
    """What the server holds between rounds.

    Parameters
    ----------
    spec : ModelSpec
        Of the model.
    weights : dict of str to float32 array
        Sparse layer -> flattened dense weight, zero where inactive. Arrays are replaced,
        not edited.
    masks : dict of str to int32 array
        Mask group -> active slots.
    dense : dict of str to float32 array
        Dense tensors.
    targets : dict of str to int
        Mask group -> active granules at the highest density of the fleet.
    grown : dict of str to int32 array
        Mask group -> slots grown at the last mutation.
    pseudo_gradient : dict of str to float32 array
        Sparse layer -> old minus new weights of the last round.
    """

    spec: ModelSpec
    weights: dict[str, Floats]
    masks: MaskSet
    dense: dict[str, Floats]
    targets: dict[str, int]
    grown: MaskSet = field(default_factory=dict)
    pseudo_gradient: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def from_state(cls, spec: ModelSpec, state: SparseState) -> "GlobalModel":
        """Start from a model's state; its active counts are the targets."""
        weights = {}
        for group, layers in spec.groups.items():
            slots = state.masks[group]
            for layer in layers:
                layout, values = spec.layouts[layer], state.values[layer]
                weights[layer] = layout.scatter(values, slots).reshape(-1)
        targets = {group: len(slots) for group, slots in state.masks.items()}
        return cls(spec, weights, dict(state.masks), dict(state.dense), targets)

    def put(self, state: SparseState) -> None:
        """Take another state's weights and mask; the targets stay."""
        other = GlobalModel.from_state(self.spec, state)
        self.weights, self.masks, self.dense = other.weights, other.masks, other.dense
        self.grown = {}

    def state(self, masks: MaskSet | None = None, spec: ModelSpec | None = None) -> SparseState:
        """Return the state on the global mask, or on a tier's; of a narrower model, its corner."""
        masks = self.masks if masks is None else masks
        values = {
            layer: self.spec.layouts[layer].gather(self.weights[layer], masks[group])
            for group, layers in self.spec.groups.items()
            for layer in layers
        }
        dense = self.dense if spec is None else corners(self.dense, spec.dense)
        return SparseState(dict(masks), values, dict(dense))

    def tier_masks(self, density: float, distribution: str) -> MaskSet:
        """Return the nested mask of a density: the best granules of the global mask.

        Above the target (soft bound), every tier holds the same share more.
        """
        layouts = {group: self.spec.group_layout(group) for group in self.spec.groups}
        counts = layer_counts(layouts, density, distribution) if layouts else {}
        tier: MaskSet = {}
        for group, slots in self.masks.items():
            ratio = len(slots) / self.targets[group]
            count = min(len(slots), max(1, round(counts[group] * ratio)))
            mask = Mask(layouts[group], slots)
            added = np.isin(slots, self.grown.get(group, np.empty(0, np.int32)))
            scores = nested_order(self._norms(group), added)
            tier[group] = keep_best(mask, scores, count).slots
        return tier

    def apply_update(self, mean: Aggregate, optimizer: ServerOptimizer) -> None:
        """Take over a round's aggregate; weights that no client was offered stay as they were."""
        self.pseudo_gradient = {}
        if mean.weight == 0:
            return
        for layer, total in mean.layers.items():
            average, held = total.mean()
            old = self.weights[layer]
            gradient = np.where(held, old - average, np.float32(0))
            self.pseudo_gradient[layer] = gradient
            new = optimizer.step(layer, old, gradient, held)
            self.weights[layer] = np.where(total.dropped(), np.float32(0), new)
        means, parts = mean.dense_mean(), mean.dense_held()
        for name, old in self.dense.items():
            average = means.get(name, old)
            part = parts.get(name) if name in means else np.zeros(old.shape, np.bool_)
            if part is not None:
                average = np.where(part, average, old)
            is_weight = name not in self.spec.statistics
            self.dense[name] = (
                optimizer.step(name, old, old - average, part) if is_weight else average
            )

    def adopt_masks(self, optimizer: ServerOptimizer) -> None:
        """Choose the mask anew by magnitude over all that clients brought (client mutation)."""
        for group, layers in self.spec.groups.items():
            layout = self.spec.group_layout(group)
            old = Mask(layout, self.masks[group])
            dense = self.weights[layers[0]].reshape(layout.shape)
            slots, lengths = layout.best_slots(dense)
            for layer in layers[1:]:
                other = self.spec.layouts[layer]
                dense = self.weights[layer].reshape(other.shape)
                lengths = np.hypot(lengths, other.best_slots(dense)[1])
            # A granule of zeros alone came with no update, unless it was active before.
            present = (lengths > 0) | old.active()
            keep = Mask.of(layout, slots[present])
            chosen = keep_best(keep, lengths[present], self.targets[group])
            added = chosen.slots[~old.active()[chosen.granules]]
            self._set_mask(group, chosen, added, optimizer)

    def mutate(
        self,
        method: Method,
        progress: float,
        optimizer: ServerOptimizer,
        seed_path: tuple[int, str, int],
    ) -> None:
        """Drop and grow on the server, by the weights and the last round's pseudo-gradient.

        Parameters
        ----------
        method : Method
            What to drop and grow.
        progress : float
            In [0, 1].
        optimizer : ServerOptimizer
            Its moments are cleared where weights are dropped or grown.
        seed_path : tuple
            Run seed, purpose and round, from which growth is drawn.
        """
        bounds = method.bounds(progress)
        for group in self.spec.groups:
            mask = Mask(self.spec.group_layout(group), self.masks[group])
            importance = method.importance(
                self._side_by_side(group, self.weights),
                self._side_by_side(group, self.pseudo_gradient) if self.pseudo_gradient else None,
            )
            generator = numpy_generator(*seed_path, group)
            proposal = method.growth_order(mask.layout, generator)
            new = method.mutate(mask, importance, proposal, self.targets[group], bounds)
            added = new.slots[new.rows_in(mask) < 0]
            self._set_mask(group, new, added, optimizer)

    def cut_to_target(self, optimizer: ServerOptimizer) -> None:
        """Drop what stands above the target, by magnitude: the end of a soft bound."""
        for group in self.spec.groups:
            mask = Mask(self.spec.group_layout(group), self.masks[group])
            if len(mask) > self.targets[group]:
                kept = keep_best(mask, self._norms(group), self.targets[group])
                self._set_mask(group, kept, np.empty(0, np.int32), optimizer)

    def _set_mask(self, group: str, mask: Mask, added: Slots, optimizer: ServerOptimizer) -> None:
        self.masks[group] = mask.slots
        self.grown[group] = added
        for layer in self.spec.groups[group]:
            active = self.active(layer)
            self.weights[layer] = np.where(active, self.weights[layer], np.float32(0))
            grown = self.spec.layouts[layer].positions(added).ravel()
            inactive = ~active
            inactive[grown[grown < len(inactive)]] = True
            optimizer.forget(layer, inactive)

    def active(self, layer: str) -> npt.NDArray[np.bool_]:
        """Return which weights of a layer are active, over its flattened dense weight."""
        layout = self.spec.layouts[layer]
        slots = self.masks[self.spec.group_of(layer)]
        flags = np.zeros(layout.num_weights + 1, dtype=np.bool_)
        flags[layout.positions(slots)] = True
        return flags[:-1]

    def _side_by_side(self, group: str, arrays: dict[str, Floats]) -> Floats:
        slots = self.masks[group]
        layers = self.spec.groups[group]
        parts = [self.spec.layouts[layer].gather(arrays[layer], slots) for layer in layers]
        return np.concatenate(parts, axis=1)

    def _norms(self, group: str) -> Floats:
        lengths: Floats = norms(self._side_by_side(group, self.weights))
        return lengths
