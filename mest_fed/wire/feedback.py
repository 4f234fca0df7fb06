"""Error feedback: what a lossy codec left out of one message goes into the next.

Seide et al. 2014 (1-bit SGD), Karimireddy et al. 2019 (EF-SGD). Over any number of messages, the
sum of what was sent is the sum of what was meant less the last residual.
"""

import math
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mest_fed.errors import WireError
from mest_fed.sparsity.arrays import Floats, Slots
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.wire.float_formats import Array
from mest_fed.wire.maskset import MaskSet
from mest_fed.wire.values import ValueCodec


@dataclass(frozen=True)
class Rows:
    """Active values of one layer, or a dense tensor.

    Parameters
    ----------
    layer, group : str
        Name of the layer and of its mask group; of the tensor, which has no group.
    slots : int32 array or None
        The group's active slots, shape ``(active,)``; None of a dense tensor.
    width : int
        Values of a slot, padding included.
    inside : bool array or None
        Which values are no padding, shape ``(active, width)``; None where none is padding.
    length : int
        How many values travel.
    """

    layer: str
    group: str
    slots: Slots | None
    width: int
    inside: npt.NDArray[np.bool_] | None
    length: int


def active_lengths(
    masks: MaskSet, spec: ModelSpec, frozen: Collection[str] = frozenset()
) -> list[int]:
    """Return how many values of each sparse layer travel, padding and frozen layers left out."""
    active = {layer: masks[group] for group, layers in spec.groups.items() for layer in layers}
    return [
        layout.active_weights(active[layer])
        for layer, layout in spec.layouts.items()
        if layer not in frozen
    ]


def coded_tensors(
    spec: ModelSpec, codec: ValueCodec, frozen: Collection[str] = frozenset()
) -> dict[str, int]:
    """Return the dense tensors that travel as values do, as differences, and their sizes.

    They are the weights of a model without sparse layers, and of any model where the codec takes
    all. Statistics, which are averaged and not trained, travel as they are.
    """
    if not codec.differences or (spec.layouts and not codec.takes_all):
        return {}
    apart = spec.statistics | spec.non_negative | set(frozen)
    sizes = {name: math.prod(shape) for name, shape in spec.dense.items() if name not in apart}
    return {name: size for name, size in sizes.items() if size}


def active_rows(
    masks: MaskSet,
    spec: ModelSpec,
    tensors: Mapping[str, int] = {},
    frozen: Collection[str] = frozenset(),
) -> list[Rows]:
    """List the active values of sparse layers that travel, then dense tensors of given sizes."""
    group_of = {layer: group for group, layers in spec.groups.items() for layer in layers}
    sent = (layer for layer in spec.layouts if layer not in frozen)
    layers = [_rows(layer, group_of[layer], masks, spec) for layer in sent]
    return layers + [Rows(name, "", None, size, None, size) for name, size in tensors.items()]


def _rows(layer: str, group: str, masks: MaskSet, spec: ModelSpec) -> Rows:
    layout, slots = spec.layouts[layer], masks[group]
    length, inside = layout.active_weights(slots), None
    if length != len(slots) * layout.width:
        inside = layout.positions(slots) != layout.num_weights
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
        if row.slots is None:
            parts.append(layer.reshape(-1))
            continue
        if layer.shape != (len(row.slots), row.width):
            raise ValueError(f"{row.layer} has {len(row.slots)} active slots, values {layer.shape}")
        parts.append(layer.reshape(-1) if row.inside is None else layer[row.inside])
    return np.concatenate(parts, dtype=np.float32)


def unflatten(flat: Floats, rows: Sequence[Rows]) -> dict[str, Floats]:
    """Undo :func:`flatten`; padding becomes zero, and dense tensors stay flat."""
    values, start = {}, 0
    for row in rows:
        part = flat[start : start + row.length]
        start += row.length
        if row.slots is None:
            values[row.layer] = part
        elif row.inside is None:
            values[row.layer] = part.reshape(len(row.slots), row.width)
        else:
            values[row.layer] = np.zeros((len(row.slots), row.width), np.float32)
            values[row.layer][row.inside] = part
    return values


def carried(masks: MaskSet, values: Mapping[str, Floats], rows: Sequence[Rows]) -> Floats:
    """Carry values of other masks over by slot and flatten them; what is absent there is 0."""
    on_slots = {}
    for row in rows:
        if row.layer not in values:
            width = (row.length,) if row.slots is None else (len(row.slots), row.width)
            on_slots[row.layer] = np.zeros(width, np.float32)
            continue
        if row.slots is None:
            on_slots[row.layer] = values[row.layer]
            continue
        old = masks[row.group]
        found = np.searchsorted(old, row.slots).clip(max=len(old) - 1)
        present = (old[found] == row.slots)[:, None]
        on_slots[row.layer] = np.where(present, values[row.layer][found], np.float32(0))
    return flatten(on_slots, rows)


@dataclass(frozen=True)
class Residual:
    """What the receiver is still owed.

    Parameters
    ----------
    masks : dict of str to int32 array
        The masks of the last message.
    values : dict of str to float32 array
        Sparse layer -> shape ``(active, width)``; dense tensor -> its differences, flat.
    """

    masks: MaskSet
    values: dict[str, Floats]


def start_values(reference: SparseState, rows: list[Rows]) -> Floats:
    """Return the values from which differences start: the reference's, 0 for slots absent there."""
    return carried(reference.masks, reference.values | reference.dense, rows)


def checksum(start: Floats, before: int = 0) -> int:
    """Return the CRC-32 that tells whether both ends start from the same values.

    ``before`` is that of the values before these.
    """
    return zlib.crc32(np.ascontiguousarray(start, "<f4").data, before)


def add(start: Floats | None, change: Floats) -> Floats:
    """Return what the receiver holds after a message.

    Raises
    ------
    WireError
        If a sum is not finite.
    """
    if start is None:
        return change
    with np.errstate(over="ignore"):
        held = start + change
    if not np.isfinite(held).all():
        raise WireError("not every value is a finite number after the difference is added")
    return held


def pack_with_feedback(
    state: SparseState,
    rows: list[Rows],
    codec: ValueCodec,
    reference: SparseState | None,
    residual: Residual | None,
) -> tuple[dict[str, Array], Residual, int | None]:
    """Write the values, or their differences from a reference, together with the old residual.

    A residual whose slot was dropped since is dropped. No more than two arrays of the size of all
    values stand beside the states and the residual.

    Returns
    -------
    arrays : dict of str to array
        What the codec wrote.
    residual : Residual
        What it left out: the values meant less the values that the receiver now holds.
    start : int or None
        Checksum of the values that the differences start from.
    """
    lengths, start = [row.length for row in rows], None
    wanted = flatten(state.values | state.dense, rows)
    with np.errstate(over="ignore"):  # the codec rejects what is not finite
        if residual is not None:
            for row, part in _parts(rows):
                wanted[part] += carried(residual.masks, residual.values, [row])
        change = wanted
        if reference is not None:
            change, start = wanted.copy(), 0
            for row, part in _parts(rows):
                first = start_values(reference, [row])
                start = checksum(first, start)
                change[part] -= first
        arrays = codec.pack(change, lengths)
        del change
        held = codec.unpack(arrays, lengths)
        if reference is not None:
            for row, part in _parts(rows):
                held[part] = add(start_values(reference, [row]), held[part])
        wanted -= held
    masks = {group: slots.copy() for group, slots in state.masks.items()}
    return arrays, Residual(masks, unflatten(wanted, rows)), start


def _parts(rows: Sequence[Rows]) -> Iterator[tuple[Rows, slice]]:
    """Yield each of the rows, and where its values stand among all."""
    end = 0
    for row in rows:
        yield row, slice(end, end + row.length)
        end += row.length
