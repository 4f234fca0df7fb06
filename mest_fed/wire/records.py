"""Payloads as Flower records: values as an ``ArrayRecord``, the header as bytes.

Arrays stay arrays, so that Flower's own mods (clipping, noise, message size) see them. Caller and
other strategies may put more into the ``mest`` record, and more records beside it.
"""

import re
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from mest_fed.errors import WireError
from mest_fed.wire.payload import Payload

ARRAYS, CONFIG, HEADER = "arrays", "mest", "header"
_NAMES = ("values", "scales", "dense")
_DTYPES = {"<f4": np.float32, "<f2": np.float16, "<u2": np.uint16, "|i1": np.int8}
#: The .npy header of a one-dimensional array in version 1.0, the only thing that ever is sent.
#: numpy.load would evaluate whatever stands there, and allocate what it announces.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)"
    rb"\{'descr': '(?P<dtype><f4|<f2|<u2|\|i1)', 'fortran_order': False,"
    rb" 'shape': \((?P<count>\d{1,10}),\), \} *\n",
    re.DOTALL,
)


def to_record(payload: Payload) -> RecordDict:
    """Put a payload into an ``ArrayRecord`` "arrays" and a ``ConfigRecord`` "mest"."""
    arrays = ArrayRecord({name: Array(array) for name, array in payload.arrays.items()})
    return RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({HEADER: payload.header})})


def from_record(record: RecordDict) -> Payload:
    """Take a payload out of a message's content; its arrays are views of the message, read-only.

    Raises
    ------
    WireError
        If the records, an array's name, type or length are not what :func:`to_record` writes.
    """
    arrays, config = record.get(ARRAYS), record.get(CONFIG)
    if not isinstance(arrays, ArrayRecord) or not isinstance(config, ConfigRecord):
        raise WireError(f"an ArrayRecord {ARRAYS!r} and a ConfigRecord {CONFIG!r} are needed")
    header = config.get(HEADER)
    if not isinstance(header, bytes):
        raise WireError(f"{CONFIG}.{HEADER} must be bytes, not {type(header).__name__}")
    unknown = sorted(arrays.keys() - set(_NAMES))
    if unknown:
        raise WireError(f"array {unknown[0]!r} is unknown; known: {', '.join(_NAMES)}")
    return Payload({name: _view(name, array) for name, array in arrays.items()}, header)


def _view(name: str, array: Array) -> np.ndarray[Any, np.dtype[Any]]:
    found = _NPY.match(array.data) if array.stype == "numpy.ndarray" else None
    if found is None or int.from_bytes(found["length"], "little") != found.end() - 10:
        raise WireError(f"array {name} is not a one-dimensional .npy array of a known type")
    dtype, count = np.dtype(_DTYPES[found["dtype"].decode()]), int(found["count"])
    if len(array.data) - found.end() != count * dtype.itemsize:
        raise WireError(f"array {name} does not hold the {count} items that it announces")
    if array.dtype != str(dtype) or tuple(array.shape) != (count,):
        raise WireError(f"array {name} has another type or shape than its record says")
    return np.frombuffer(array.data, dtype, count, found.end())
