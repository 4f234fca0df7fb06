"""Which values of which sparse layer travel, and in what order.

The order is that of :attr:`mest_fed.nn.ModelSpec.layouts`, row by row. Values that pad an
incomplete granule never travel: the receiver puts zeros there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mest_fed.nn.state import Floats, ModelSpec, Slots
from mest_fed.wire.maskset import MaskSet


@dataclass(frozen=True)
class Rows:
    """Live values of one layer.

    Parameters
    ----------
    layer, group : str
        Name of the layer and of its mask group.
    slots : int32 array
        The group's live slots, shape ``(live,)``.
    width : int
        Values of a slot, padding included.
    inside : bool array or None
        Which values are no padding, shape ``(live, width)``; None where none is padding.
    length : int
        How many values travel.
    """

    layer: str
    group: str
    slots: Slots
    width: int
    inside: npt.NDArray[np.bool_] | None
    length: int


def live_lengths(masks: MaskSet, spec: ModelSpec) -> list[int]:
    """Return how many values of each sparse layer travel, padding left out."""
    live = {layer: masks[group] for group, layers in spec.groups.items() for layer in layers}
    return [
        layout.live_weights(torch.tensor(live[layer])) for layer, layout in spec.layouts.items()
    ]


def live_rows(masks: MaskSet, spec: ModelSpec) -> list[Rows]:
    """List the live values of all sparse layers."""
    group_of = {layer: group for group, layers in spec.groups.items() for layer in layers}
    return [_rows(layer, group_of[layer], masks, spec) for layer in spec.layouts]


def _rows(layer: str, group: str, masks: MaskSet, spec: ModelSpec) -> Rows:
    layout, slots = spec.layouts[layer], masks[group]
    tensor = torch.tensor(slots)  # from_numpy would warn of arrays that cannot be written
    length, inside = layout.live_weights(tensor), None
    if length != len(slots) * layout.width:
        inside = (layout.positions(tensor) != layout.num_weights).numpy()
    return Rows(layer, group, slots, layout.width, inside, length)


def flatten(values: Mapping[str, Floats], rows: Sequence[Rows]) -> Floats:
    """Put the values of all layers one after the other, padding left out.

    Raises
    ------
    ValueError
        If a layer's values do not fit its mask.
    """
    parts = []
    for row in rows:
        layer = values[row.layer]
        if layer.shape != (len(row.slots), row.width):
            raise ValueError(f"{row.layer} has {len(row.slots)} live slots, values {layer.shape}")
        parts.append(layer.reshape(-1) if row.inside is None else layer[row.inside])
    return np.concatenate(parts, dtype=np.float32)


def unflatten(flat: Floats, rows: Sequence[Rows]) -> dict[str, Floats]:
    """Undo :func:`flatten`; padding becomes zero."""
    values, start = {}, 0
    for row in rows:
        part = flat[start : start + row.length]
        start += row.length
        if row.inside is None:
            values[row.layer] = part.reshape(len(row.slots), row.width)
        else:
            values[row.layer] = np.zeros((len(row.slots), row.width), np.float32)
            values[row.layer][row.inside] = part
    return values


def carried(masks: MaskSet, values: Mapping[str, Floats], rows: Sequence[Rows]) -> Floats:
    """Carry values of other masks over by slot and flatten them; a slot absent there is 0."""
    on_slots = {}
    for row in rows:
        old = masks[row.group]
        found = np.searchsorted(old, row.slots).clip(max=len(old) - 1)
        present = (old[found] == row.slots)[:, None]
        on_slots[row.layer] = np.where(present, values[row.layer][found], np.float32(0))
    return flatten(on_slots, rows)
