"""One-dimensional arrays as ``.npy``, version 1.0: the only thing that is ever sent.

``numpy.load`` would evaluate what a header says, and allocate what it announces.
"""

import re
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import dtype_to_descr, write_array_header_1_0

from mest_fed.errors import WireError
from mest_fed.wire.payload import Payload
from mest_fed.wire.slopes import SLOPES
from mest_fed.wire.values import FIELD_NAMES, WIRE_TYPES

#: Names of the arrays of a payload.
NAMES = (*FIELD_NAMES, "dense", SLOPES)
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)"
    rb"\{'descr': '(?P<dtype>%s)', 'fortran_order': False,"
    rb" 'shape': \((?P<count>\d{1,10}),\), \} *\n" % "|".join(map(re.escape, WIRE_TYPES)).encode(),
    re.DOTALL,
)


def read_npy(name: str, data: bytes | memoryview) -> npt.NDArray[Any]:
    """Return the array of a ``.npy``, a view of its bytes, read-only.

    Raises
    ------
    WireError
        If it is not one-dimensional, of a type that travels, and as long as it announces.
    """
    found = _NPY.match(data)
    if found is None or int.from_bytes(found["length"], "little") != found.end() - 10:
        raise WireError(f"array {name} is not a one-dimensional .npy array of a known type")
    dtype, count = np.dtype(found["dtype"].decode()), int(found["count"])
    if len(data) - found.end() != count * dtype.itemsize:
        raise WireError(f"array {name} does not hold the {count} items that it announces")
    return np.frombuffer(data, dtype, count, found.end())


@lru_cache(maxsize=256)
def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what ``numpy.save`` writes before values in C order."""
    header = BytesIO()
    described = {"descr": dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    write_array_header_1_0(header, described)
    return header.getvalue()


def write_npy(values: npt.NDArray[Any]) -> bytes:
    """Return an array in C order as ``.npy``, with one copy of its values."""
    return b"".join((npy_header(values.dtype, values.shape), values.data))


#: Name of the header among the objects of a payload.
HEADER = "header"


def to_objects(payload: Payload) -> dict[str, bytes]:
    """Return a payload as named bytes."""
    arrays = {name: write_npy(array) for name, array in payload.arrays.items()}
    return {HEADER: payload.header, **arrays}


def from_objects(objects: "dict[str, bytes | memoryview]") -> Payload:
    """Read what :func:`to_objects` wrote.

    Raises
    ------
    WireError
        If the header is missing, or an array has another name, type or length.
    """
    if HEADER not in objects:
        raise WireError(f"there is no {HEADER}")
    arrays = {name: data for name, data in objects.items() if name != HEADER}
    check_names(arrays)
    return Payload(
        {name: read_npy(name, data) for name, data in arrays.items()}, bytes(objects[HEADER])
    )


def check_names(names: "dict[str, Any]") -> None:
    """Raise WireError if a name is none of a payload's arrays."""
    unknown = sorted(names.keys() - set(NAMES))
    if unknown:
        raise WireError(f"array {unknown[0]!r} is unknown; known: {', '.join(NAMES)}")
