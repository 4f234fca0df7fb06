"""A model's state as plain NumPy arrays, and the specification that says what they mean.

This is what travels: the wire encodes a :class:`SparseState`, the server aggregates it, a
checkpoint stores it. None of them needs the model, only its :class:`ModelSpec`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mest_fed.errors import InputError
from mest_fed.sparsity.arrays import Floats, Slots
from mest_fed.sparsity.layout import Layout
from mest_fed.sparsity.schemes import LAYOUTS


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
    width : float
        Share of the channels that a narrower model has of the run's, in (0, 1]; see
        :func:`corners`.
    """

    groups: dict[str, tuple[str, ...]]
    layouts: dict[str, Layout]
    dense: dict[str, tuple[int, ...]]
    non_negative: frozenset[str] = frozenset()
    statistics: frozenset[str] = frozenset()
    width: float = 1.0

    @property
    def tensors(self) -> int:
        """Sparse layers and dense tensors: how many arrays a state has beside its masks."""
        return len(self.layouts) + len(self.dense)

    def group_layout(self, group: str) -> Layout:
        """Return the layout of a group's mask."""
        return self.layouts[self.groups[group][0]]

    def group_of(self, layer: str) -> str:
        """Return the mask group of a sparse layer."""
        return next(group for group, layers in self.groups.items() if layer in layers)

    def as_table(self) -> dict[str, Any]:
        """Return the specification as plain values, for :meth:`read`.

        Raises
        ------
        InputError
            If a layout is a user's own: it is code, which does not travel.
        """
        return {
            "groups": {group: list(layers) for group, layers in self.groups.items()},
            "layouts": {name: _layout_table(name, each) for name, each in self.layouts.items()},
            "dense": {name: list(shape) for name, shape in self.dense.items()},
            "non_negative": sorted(self.non_negative),
            "statistics": sorted(self.statistics),
            **({"width": self.width} if self.width < 1 else {}),
        }

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> "ModelSpec":
        """Read what :meth:`as_table` wrote.

        Raises
        ------
        InputError
            If it is something else.
        """
        try:
            layouts = {str(name): _read_layout(each) for name, each in table["layouts"].items()}
            groups = {str(name): tuple(map(str, each)) for name, each in table["groups"].items()}
            dense = {str(name): tuple(map(int, each)) for name, each in table["dense"].items()}
            named = frozenset(table["non_negative"]), frozenset(table["statistics"])
            width = float(table.get("width", 1.0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is no specification of a model: {error!r}") from None
        if sorted(layer for each in groups.values() for layer in each) != sorted(layouts):
            raise InputError("this is no specification of a model: its groups are of other layers")
        if not named[0] | named[1] <= dense.keys():
            raise InputError("this is no specification of a model: it names tensors that it lacks")
        return cls(groups, layouts, dense, *named, width)

    @property
    def sparse_weights(self) -> int:
        """Weights of the sparse layers, inactive ones included."""
        return sum(layout.num_weights for layout in self.layouts.values())


def _layout_table(name: str, layout: Layout) -> dict[str, Any]:
    kind = next((kind for kind, each in LAYOUTS.items() if type(layout) is each), None)
    if kind is None:
        allowed = f"built-in layouts: {', '.join(LAYOUTS)}"
        raise InputError(f"{name} is cut by {type(layout).__name__}; a node can have {allowed}")
    return {"kind": kind, **asdict(layout)}


def _read_layout(table: Mapping[str, Any]) -> Layout:
    options = {key: value for key, value in table.items() if key not in ("kind", "shape")}
    return LAYOUTS[table["kind"]](tuple(map(int, table["shape"])), **options)


def corners(
    tensors: Mapping[str, Floats], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Floats]:
    """Return what a narrower model has of a wider one's tensors: the first channels on each axis.

    HeteroFL (Diao et al., ICLR 2021, section 3.1): a layer of the widths d and k, cut to the share
    r, has ``W[:r d, :r k]``. Narrower models so are nested.
    """
    return {name: tensors[name][corner(shape)] for name, shape in shapes.items()}


def corner(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the index of the first channels along each axis."""
    return tuple(slice(length) for length in shape)


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
        """Return active weights / weights over the sparse layers.

        Of a model without any it is the share of the channels, so 1 unless the model is narrower.
        """
        if not spec.layouts:
            return spec.width
        active = 0
        for group, layers in spec.groups.items():
            slots = self.masks[group]
            active += sum(spec.layouts[layer].active_weights(slots) for layer in layers)
        return active / spec.sparse_weights
