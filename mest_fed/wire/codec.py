"""A sparse state as a payload."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mest_fed.errors import WireError
from mest_fed.sparsity.arrays import Floats
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.wire.feedback import (
    Residual,
    Rows,
    active_lengths,
    active_rows,
    add,
    checksum,
    coded_tensors,
    flatten,
    pack_with_feedback,
    start_values,
    unflatten,
)
from mest_fed.wire.float_formats import Array, FloatFormat
from mest_fed.wire.maskset import (
    MaskSet,
    announced_counts,
    check_masks,
    decode_masks,
    encode_masks,
    mask_hash,
    max_body_bytes,
    same_masks,
)
from mest_fed.wire.payload import Header, MaskSource, Payload, UnknownMaskError
from mest_fed.wire.values import Fields, ValueCodec, value_codec, value_codec_of


def encode(
    state: SparseState,
    spec: ModelSpec,
    *,
    values: str = "fp32",
    known: MaskSet | None = None,
    known_hash: bytes = b"",
    reference: SparseState | None = None,
    residual: Residual | None = None,
    frozen: Collection[str] = frozenset(),
) -> tuple[Payload, Residual | None]:
    """Write a state.

    Parameters
    ----------
    state : SparseState
        What to send.
    spec : ModelSpec
        Specification of the model.
    values : str
        Name of a value codec. ``fp32``, ``fp16`` and ``bf16`` send the values as they are; of
        these, bf16 travels as uint16, so what edits arrays on their way needs one of the others.
        ``int8`` and ``topk`` send differences.
    known : dict of str to int32 array or None
        Masks that the receiver holds. If they are the state's, their hash alone travels.
    known_hash : bytes
        Their hash, where the caller has it.
    reference : SparseState or None
        For differences: a state that both ends hold bit for bit, such as the one the sender had
        decoded. Differences from it travel.
    residual : Residual or None
        For differences: what the last call returned.
    frozen : collection of str
        Sparse layers and dense tensors that are as the receiver sent them, masks included: they
        are left out.

    Returns
    -------
    payload : Payload
        The message.
    residual : Residual or None
        For differences, what the message left out, to be given to the next call.

    Raises
    ------
    InputError
        If there is no such value codec.
    WireError
        If the state cannot be sent: masks that break the rules, values that are not finite, or
        differences that overflow.
    """
    codec = value_codec(values)
    check_masks(state.masks, spec)
    _check_shapes(state.dense, spec)
    tensors = coded_tensors(spec, codec, frozen)
    rows = active_rows(state.masks, spec, tensors, frozen)
    arrays: dict[str, Array] = {}
    owed, start = None, None
    if rows and codec.differences:
        arrays, owed, start = pack_with_feedback(state, rows, codec, reference, residual)
    elif rows:
        arrays = codec.pack(flatten(state.values, rows), [row.length for row in rows])
    apart = tensors.keys() | set(frozen)
    if rest := [state.dense[name] for name in spec.dense if name not in apart]:
        parts = [each.reshape(-1) for each in rest]
        arrays["dense"] = codec.dense.pack(np.concatenate(parts, dtype=np.float32))
    header = _header(codec, state.masks, spec, known, known_hash, start=start)
    header = replace(header, trained_alone=bool(frozen))
    return Payload(arrays, header.pack()), owed


def _header(
    codec: ValueCodec,
    masks: MaskSet,
    spec: ModelSpec,
    known: MaskSet | None,
    known_hash: bytes,
    *,
    start: int | None,
) -> Header:
    if known and same_masks(known, masks):
        return Header(codec.number, MaskSource.KNOWN, known_hash or mask_hash(known), start)
    name = mask_hash(masks)
    body, needs_base = encode_masks(masks, spec, known or None)
    if known and needs_base:
        base = known_hash or mask_hash(known)
        return Header(codec.number, MaskSource.BASE, name, start, base, body)
    return Header(codec.number, MaskSource.FULL, name, start, body=body)


def _check_shapes(dense: Mapping[str, Floats], spec: ModelSpec) -> None:
    for name, shape in spec.dense.items():
        if dense[name].shape != shape:
            raise ValueError(f"{name} has shape {dense[name].shape}, not {shape}")


def decode(
    payload: Payload,
    spec: ModelSpec,
    *,
    known: Mapping[bytes, MaskSet] = {},
    reference: SparseState | None = None,
    max_density: float | None = None,
    max_active: Mapping[str, int] = {},
    frozen: Collection[str] = frozenset(),
) -> SparseState:
    """Read a state, in arrays of its own.

    What a message announces is compared with the model, with ``max_active`` and with the values
    that it holds before memory is taken for it.

    Parameters
    ----------
    payload : Payload
        The message; none of it is believed.
    spec : ModelSpec
        Specification of the model.
    known : mapping of bytes to dict
        Masks held here, by :func:`mask_hash`.
    reference : SparseState or None
        From which differences start; needed where the sender used one, and the state of what it
        left out.
    max_density : float or None
        The largest density to accept, over all sparse layers.
    max_active : mapping of str to int
        Mask group -> the most active granules to accept; any number where it is absent.
    frozen : collection of str
        Sparse layers and dense tensors that the sender keeps as they were sent: the reference's,
        where the message leaves them out.

    Raises
    ------
    UnknownMaskError
        If the message names masks that are not in ``known``.
    WireError
        If anything else is wrong.
    """
    header = Header.unpack(payload.header, max_body_bytes(spec))
    codec = value_codec_of(header.codec)
    left_out = _left_out(header, reference, frozen)
    tensors = coded_tensors(spec, codec, left_out)
    if header.start is not None and not (codec.differences and (spec.layouts or tensors)):
        raise WireError("differences are not allowed here")
    fixed = [*tensors.values()]
    sent = [layer for layer in spec.layouts if layer not in left_out]
    _check_kinds(payload.arrays, _fields(spec, codec, [0] * len(sent) + fixed, left_out))
    if header.source != MaskSource.KNOWN:
        counts = announced_counts(header.body, spec)
        _check_counts(counts, payload.arrays, spec, max_active, codec, left_out=left_out)
    masks = _read_masks(header, spec, known)
    _check_density(masks, spec, max_density)
    lengths = active_lengths(masks, spec, left_out)
    _check_lengths(payload.arrays, _fields(spec, codec, lengths + fixed, left_out))
    values = {}
    if rows := active_rows(masks, spec, tensors, left_out):
        change = codec.unpack(payload.arrays, lengths + fixed)
        values = unflatten(add(_start(header, reference, rows), change), rows)
    coded = {name: values.pop(name).reshape(spec.dense[name]) for name in tensors}
    if reference is not None and left_out:
        _take_masked(values, masks, reference, spec, left_out)
        coded |= {name: reference.dense[name].copy() for name in left_out & spec.dense.keys()}
        values = {layer: values[layer] for layer in spec.layouts}
    return SparseState(masks, values, _dense(payload.arrays, spec, codec.dense, coded))


def _left_out(
    header: Header, reference: SparseState | None, frozen: Collection[str]
) -> frozenset[str]:
    """Return what a message leaves out; WireError if it must not."""
    if not header.trained_alone:
        return frozenset()
    if reference is None or not frozen:
        raise WireError("it leaves out what is frozen, and nothing is frozen here")
    return frozenset(frozen)


def _take_masked(
    values: dict[str, Floats],
    masks: MaskSet,
    reference: SparseState,
    spec: ModelSpec,
    left_out: Collection[str],
) -> None:
    """Add the values of layers that were left out, which need the reference's masks."""
    for group, layers in spec.groups.items():
        for layer in (name for name in layers if name in left_out):
            if not np.array_equal(masks[group], reference.masks[group]):
                raise WireError(f"{layer} is left out, and its mask is not the one that was sent")
            values[layer] = reference.values[layer].copy()


def _check_density(masks: MaskSet, spec: ModelSpec, max_density: float | None) -> None:
    if max_density is None:
        return
    active = sum(active_lengths(masks, spec))
    if active > max_density * spec.sparse_weights * (1 + 1e-9):
        density = active / spec.sparse_weights
        raise WireError(f"density {density:.4f} is above the allowed {max_density:.4f}")


def _read_masks(header: Header, spec: ModelSpec, known: Mapping[bytes, MaskSet]) -> MaskSet:
    def held(name: bytes) -> MaskSet:
        if name not in known:
            raise UnknownMaskError(name)
        check_masks(known[name], spec)
        return known[name]

    if header.source == MaskSource.KNOWN:
        masks = held(header.mask_hash)
        return {group: masks[group].copy() for group in spec.groups}
    base = held(header.base_hash) if header.source == MaskSource.BASE else None
    masks = decode_masks(header.body, spec, base)
    if mask_hash(masks) != header.mask_hash:
        raise WireError("the masks do not have the hash that the header names")
    return masks


def _check_counts(
    counts: Mapping[str, int],
    arrays: Mapping[str, Array],
    spec: ModelSpec,
    max_active: Mapping[str, int],
    codec: ValueCodec,
    *,
    left_out: Collection[str],
) -> None:
    """Compare announced active slots with what may be, and with the values that are there."""
    for group, count in counts.items():
        if count > max_active.get(group, count):
            raise WireError(f"{group} has {count} active granules; {max_active[group]} were sent")
    # Each active slot has a value at least in each layer of its group.
    least = sum(
        counts[group] * sum(layer not in left_out for layer in layers)
        for group, layers in spec.groups.items()
    )
    if least and codec.fields([least])["values"][1] > arrays["values"].size:
        held = arrays["values"].shape
        raise WireError(f"the masks announce {least} active slots, and there are {held} values")


def _fields(
    spec: ModelSpec, codec: ValueCodec, lengths: Sequence[int], left_out: Collection[str]
) -> Fields:
    fields = codec.fields(lengths) if lengths else {}
    apart = coded_tensors(spec, codec, left_out).keys() | set(left_out)
    if rest := [math.prod(shape) for name, shape in spec.dense.items() if name not in apart]:
        fields["dense"] = (codec.dense.dtype, sum(rest))
    return fields


def _check_kinds(arrays: Mapping[str, Array], fields: Fields) -> None:
    """Compare names and types, which do not depend on the masks."""
    if arrays.keys() != fields.keys():
        raise WireError(f"arrays {sorted(arrays)} instead of {sorted(fields)}")
    for name, (dtype, _) in fields.items():
        if arrays[name].dtype != dtype:
            raise WireError(f"array {name}: {arrays[name].dtype}, not {dtype}")


def _check_lengths(arrays: Mapping[str, Array], fields: Fields) -> None:
    for name, (_, length) in fields.items():
        if arrays[name].shape != (length,):
            raise WireError(f"array {name}: of shape {arrays[name].shape}, not ({length},)")


def _start(header: Header, reference: SparseState | None, rows: list[Rows]) -> Floats | None:
    if header.start is None:
        return None
    if reference is None:
        raise WireError("the values are differences, and there is no reference to add them to")
    start = start_values(reference, rows)
    if checksum(start) != header.start:
        raise WireError("the values are differences from another reference than the one held here")
    return start


def _dense(
    arrays: Mapping[str, Array], spec: ModelSpec, form: FloatFormat, coded: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Read the dense tensors that travel as they are; put those that do not beside them."""
    flat = form.unpack(arrays["dense"]) if "dense" in arrays else np.zeros(0, np.float32)
    dense, start = {}, 0
    for name, shape in spec.dense.items():
        if name in coded:
            dense[name] = coded[name]
            continue
        size = math.prod(shape)
        dense[name] = flat[start : start + size].reshape(shape)
        if name in spec.non_negative and (dense[name] < 0).any():
            raise WireError(f"{name} has a negative number: it is a variance")
        start += size
    return dense
