"""A payload as a sparse state. Nothing in it is believed."""

import math
from collections.abc import Mapping

from mest_fed.errors import WireError
from mest_fed.nn.state import Floats, ModelSpec, SparseState
from mest_fed.wire.feedback import add, checksum, start_values
from mest_fed.wire.formats import Array, FloatFormat
from mest_fed.wire.header import Header, MaskSource
from mest_fed.wire.maskset import MaskSet, check_masks, decode_masks, mask_hash, max_body_bytes
from mest_fed.wire.payload import Payload, UnknownMaskError
from mest_fed.wire.rows import Rows, live_rows, unflatten
from mest_fed.wire.values import Fields, value_codec_of


def decode(
    payload: Payload,
    spec: ModelSpec,
    *,
    known: Mapping[bytes, MaskSet] = {},
    reference: SparseState | None = None,
    max_density: float | None = None,
) -> SparseState:
    """Read a state, in arrays of its own.

    Parameters
    ----------
    payload : Payload
        The message; none of it is believed.
    spec : ModelSpec
        Specification of the model.
    known : mapping of bytes to dict
        Masks held here, by :func:`mask_hash`.
    reference : SparseState or None
        From which differences start; needed where the sender used one.
    max_density : float or None
        The largest density to accept, over all sparse layers.

    Raises
    ------
    UnknownMaskError
        If the message names masks that are not in ``known``.
    WireError
        If anything else is wrong.
    """
    header = Header.unpack(payload.header, max_body_bytes(spec))
    codec = value_codec_of(header.codec)
    if header.start is not None and not (codec.differences and spec.layouts):
        raise WireError("differences are not allowed here")
    masks = _read_masks(header, spec, known)
    rows = live_rows(masks, spec)
    lengths = [row.length for row in rows]
    if max_density is not None and sum(lengths) > max_density * spec.sparse_weights * (1 + 1e-9):
        density = sum(lengths) / spec.sparse_weights
        raise WireError(f"density {density:.4f} is above the allowed {max_density:.4f}")
    fields = codec.fields(lengths) if rows else {}
    if spec.dense:
        fields["dense"] = (codec.dense.dtype, sum(map(math.prod, spec.dense.values())))
    _check_arrays(payload.arrays, fields)
    values = {}
    if rows:
        change = codec.unpack(payload.arrays, lengths)
        values = unflatten(add(_start(header, reference, rows), change), rows)
    dense = _unpack_dense(payload.arrays["dense"], spec, codec.dense) if spec.dense else {}
    return SparseState(masks, values, dense)


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


def _check_arrays(arrays: Mapping[str, Array], fields: Fields) -> None:
    if arrays.keys() != fields.keys():
        raise WireError(f"arrays {sorted(arrays)} instead of {sorted(fields)}")
    for name, (dtype, length) in fields.items():
        array = arrays[name]
        if array.dtype != dtype or array.shape != (length,):
            raise WireError(
                f"array {name}: {array.dtype} of shape {array.shape}, not {dtype} of ({length},)"
            )


def _start(header: Header, reference: SparseState | None, rows: list[Rows]) -> Floats | None:
    if header.start is None:
        return None
    if reference is None:
        raise WireError("the values are differences, and there is no reference to add them to")
    start = start_values(reference, rows)
    if checksum(start) != header.start:
        raise WireError("the values are differences from another reference than the one held here")
    return start


def _unpack_dense(array: Array, spec: ModelSpec, form: FloatFormat) -> dict[str, Floats]:
    flat, dense, start = form.unpack(array), {}, 0
    for name, shape in spec.dense.items():
        size = math.prod(shape)
        dense[name] = flat[start : start + size].reshape(shape)
        if name in spec.non_negative and (dense[name] < 0).any():
            raise WireError(f"{name} has a negative number: it is a variance")
        start += size
    return dense
