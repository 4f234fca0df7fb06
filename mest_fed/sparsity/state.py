"""A model's state as plain NumPy arrays, and the specification that says what they mean.

This is what travels: the wire encodes a :class:`SparseState`, the server aggregates it, a
checkpoint stores it. None of them needs the model, only its :class:`ModelSpec`.
"""

from dataclasses import dataclass

from mest_fed.sparsity.arrays import Floats, Slots
from mest_fed.sparsity.layout import Layout


@dataclass(frozen=True)
class ModelSpec:
    """What the arrays of a model's state mean.

    Parameters
    ----------
    groups : dict of str to tuple of str
        Mask group -> its sparse layers, in model order. The mask's layout is the first layer's.
    layouts : dict of str to Layout
        Sparse layer -> its layout.
    dense : dict of str to tuple of int
        Every other floating-point parameter or buffer -> its shape.
    non_negative : frozenset of str
        Those of the dense tensors of which no number may be negative: running variances.
    statistics : frozenset of str
        Those of the dense tensors that are buffers, such as running statistics: they are averaged,
        and no optimizer moves them.
    """

    groups: dict[str, tuple[str, ...]]
    layouts: dict[str, Layout]
    dense: dict[str, tuple[int, ...]]
    non_negative: frozenset[str] = frozenset()
    statistics: frozenset[str] = frozenset()

    def group_layout(self, group: str) -> Layout:
        """Return the layout of a group's mask."""
        return self.layouts[self.groups[group][0]]

    def group_of(self, layer: str) -> str:
        """Return the mask group of a sparse layer."""
        return next(group for group, layers in self.groups.items() if layer in layers)

    @property
    def sparse_weights(self) -> int:
        """Weights of the sparse layers, inactive ones included."""
        return sum(layout.num_weights for layout in self.layouts.values())


@dataclass
class SparseState:
    """Masks, active values and dense tensors of a model.

    Parameters
    ----------
    masks : dict of str to int32 array
        Mask group -> increasing slots, shape ``(active,)``.
    values : dict of str to float32 array
        Sparse layer -> shape ``(active, width)``.
    dense : dict of str to float32 array
        Everything else.
    """

    masks: dict[str, Slots]
    values: dict[str, Floats]
    dense: dict[str, Floats]

    def density(self, spec: ModelSpec) -> float:
        """Return active weights / weights over the sparse layers (1 for a model without any)."""
        if not spec.layouts:
            return 1.0
        active = 0
        for group, layers in spec.groups.items():
            slots = self.masks[group]
            active += sum(spec.layouts[layer].active_weights(slots) for layer in layers)
        return active / spec.sparse_weights
