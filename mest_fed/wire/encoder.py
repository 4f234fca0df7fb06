"""A sparse state as a payload."""

from collections.abc import Mapping

import numpy as np

from mest_fed.nn.state import Floats, ModelSpec, SparseState
from mest_fed.wire.feedback import Residual, checksum, pack_with_feedback, start_values
from mest_fed.wire.formats import Array, FloatFormat
from mest_fed.wire.header import Header, MaskSource
from mest_fed.wire.maskset import MaskSet, check_masks, encode_masks, mask_hash
from mest_fed.wire.payload import Payload
from mest_fed.wire.rows import flatten, live_rows
from mest_fed.wire.values import ValueCodec, value_codec


def encode(
    state: SparseState,
    spec: ModelSpec,
    *,
    values: str = "fp32",
    known: MaskSet | None = None,
    reference: SparseState | None = None,
    residual: Residual | None = None,
) -> tuple[Payload, Residual | None]:
    """Write a state.

    Parameters
    ----------
    state : SparseState
        What to send.
    spec : ModelSpec
        Specification of the model.
    values : str
        ``fp32``, ``fp16``, ``bf16`` or ``int8``. The first three send the values as they are; of
        these, bf16 travels as uint16, so what edits arrays on their way needs one of the others.
    known : dict of str to int32 array or None
        Masks that the receiver holds. If they are the state's, their hash alone travels.
    reference : SparseState or None
        For int8 alone: a state that both ends hold bit for bit, such as the one the sender had
        decoded. Differences from it travel.
    residual : Residual or None
        For int8 alone: what the last call returned.

    Returns
    -------
    payload : Payload
        The message.
    residual : Residual or None
        For int8, what the message left out, to be given to the next call.

    Raises
    ------
    InputError
        If there is no such value codec.
    WireError
        If the state cannot be sent: masks that break the rules, values that are not finite or too
        large for the codec.
    """
    codec = value_codec(values)
    check_masks(state.masks, spec)
    rows = live_rows(state.masks, spec)
    arrays: dict[str, Array] = {}
    owed, start = None, None
    if rows and codec.differences:
        start = None if reference is None else start_values(reference, rows)
        arrays, owed = pack_with_feedback(state, rows, codec, start, residual)
    elif rows:
        arrays = codec.pack(flatten(state.values, rows), [row.length for row in rows])
    if spec.dense:
        arrays["dense"] = _pack_dense(state.dense, spec, codec.dense)
    start_sum = None if start is None else checksum(start)
    return Payload(arrays, _header(codec, start_sum, state.masks, spec, known).pack()), owed


def _header(
    codec: ValueCodec, start: int | None, masks: MaskSet, spec: ModelSpec, known: MaskSet | None
) -> Header:
    name = mask_hash(masks)
    held = mask_hash(known) if known else b""
    if held == name:
        return Header(codec.number, MaskSource.KNOWN, name, start)
    body, needs_base = encode_masks(masks, spec, known or None)
    if needs_base:
        return Header(codec.number, MaskSource.BASE, name, start, held, body)
    return Header(codec.number, MaskSource.FULL, name, start, body=body)


def _pack_dense(dense: Mapping[str, Floats], spec: ModelSpec, form: FloatFormat) -> Array:
    for name, shape in spec.dense.items():
        if dense[name].shape != shape:
            raise ValueError(f"{name} has shape {dense[name].shape}, not {shape}")
    parts = [dense[name].reshape(-1) for name in spec.dense]
    return form.pack(np.concatenate(parts, dtype=np.float32))
