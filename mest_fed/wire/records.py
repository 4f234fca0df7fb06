"""Payloads and metrics as Flower records: values as an ``ArrayRecord``, the header as bytes.

Arrays stay arrays, so that Flower's own mods (clipping, noise, message size) see them. Caller and
other strategies may put more into the ``mest`` record, and more records beside it.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from mest_fed.devices import Work
from mest_fed.devices.cost import WORK_METRICS
from mest_fed.errors import ObjectiveError, WireError
from mest_fed.run_rows.rounds import ClientReport
from mest_fed.training.metrics import Metrics
from mest_fed.training.objective import RESERVED, Objective, Sum
from mest_fed.wire.npy import HEADER, check_names, read_npy, write_npy
from mest_fed.wire.payload import Payload

ARRAYS, CONFIG = "arrays", "mest"


def to_record(payload: Payload) -> RecordDict:
    """Put a payload into an ``ArrayRecord`` "arrays" and a ``ConfigRecord`` "mest"."""
    arrays = ArrayRecord({name: as_array(array) for name, array in payload.arrays.items()})
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
    check_names(arrays)
    return Payload({name: _view(name, array) for name, array in arrays.items()}, header)


def _view(name: str, array: Array) -> npt.NDArray[Any]:
    if array.stype != "numpy.ndarray":
        raise WireError(f"array {name} is not a one-dimensional .npy array of a known type")
    values = read_npy(name, array.data)
    if array.dtype != str(values.dtype) or tuple(array.shape) != values.shape:
        raise WireError(f"array {name} has another type or shape than its record says")
    return values


_MAGIC = b"\x93NUMPY\x01\x00"
#: Truth values and numbers: their memory is what a ``.npy`` file holds.
_PLAIN_KINDS = "biufc"
_C_ORDER = b"'fortran_order': False"


def as_numpy(array: Array) -> npt.NDArray[Any]:
    """Return an array's values, read-only and without a copy where its data is plain ``.npy``.

    Equal to ``array.numpy()``, which parses the header of each array as Python source: 0.03 ms
    an array, more than all arithmetic on a small one (measured).

    Raises
    ------
    ValueError
        If the data does not fit the array's type and shape.
    """
    data = array.data
    dtype = np.dtype(array.dtype)
    if array.stype != "numpy.ndarray" or not data.startswith(_MAGIC) or dtype.hasobject:
        return _parsed(array)
    start = 10 + int.from_bytes(data[8:10], "little")
    header = data[10:start]
    described = f"'descr': '{dtype.str}'".encode(), f"'shape': {tuple(array.shape)!r}".encode()
    if _C_ORDER not in header or not all(part in header for part in described):
        return _parsed(array)
    values: npt.NDArray[Any] = np.frombuffer(data, dtype, offset=start).reshape(array.shape)
    return values


def as_array(values: npt.NDArray[Any]) -> Array:
    """Return what ``Array(values)`` does, to the byte, with one copy of the values, not three.

    Parameters
    ----------
    values : array
        Of any shape and type that ``Array`` takes.
    """
    if not values.flags.c_contiguous or values.dtype.kind not in _PLAIN_KINDS:
        return Array(values)
    return Array(_name_of(values.dtype), values.shape, "numpy.ndarray", write_npy(values))


@lru_cache(maxsize=256)
def _name_of(dtype: np.dtype[Any]) -> str:
    """Return the name of a type: NumPy takes longer to say it than to copy a small array."""
    return str(dtype)


def _parsed(array: Array) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = array.numpy()
    return values


_NUMBER_BYTES = 8


def content_bytes(content: "RecordDict") -> int:
    """Return the bytes that records hold: data of arrays, values, and all names and keys.

    Numbers count 8 bytes and truth values 1, as in Flower's protobuf without its framing; an array
    counts what it is serialised to.

    Parameters
    ----------
    content : RecordDict
        Content of a message, or state of a client.
    """
    return sum(
        _text_bytes(name)
        + sum(_text_bytes(key) + _value_bytes(value) for key, value in record.items())
        for name, record in content.items()
    )


def _text_bytes(text: str) -> int:
    return len(text.encode())


def _value_bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(_value_bytes(item) for item in value)
    if isinstance(value, bool):
        return 1
    if isinstance(value, int | float):
        return _NUMBER_BYTES
    if isinstance(value, str):
        return _text_bytes(value)
    data = value if isinstance(value, bytes) else getattr(value, "data")  # noqa: B009
    return len(data)


def read_work(content: RecordDict) -> Work | None:
    """Read the work that a reply reports in its metrics; None where it reports none.

    What is absent, or no number from 0 on, is 0: a client of someone else's may report anything.
    """
    metrics = [record for record in content.values() if isinstance(record, MetricRecord)]
    if not any(key in record for record in metrics for key in WORK_METRICS):
        return None
    return Work(**{name: summed(metrics, key) for key, name in WORK_METRICS.items()})


#: What a real device says of its part beside its work -> the field of :class:`ClientReport`.
_SAID = {
    "work-seconds": "seconds",
    "predicted-peak": "predicted_peak_bytes",
    "measured-peak": "measured_peak_bytes",
}


def read_report(content: RecordDict) -> ClientReport | None:
    """Read what a reply says of its device's part in a round; None where it reports no work."""
    work = read_work(content)
    if work is None:
        return None
    metrics = [record for record in content.values() if isinstance(record, MetricRecord)]
    said = {
        name: summed(metrics, key)
        for key, name in _SAID.items()
        if any(key in record for record in metrics)
    }
    return ClientReport(**vars(work), **said)


def summed(metrics: Iterable[MetricRecord], key: str) -> float:
    """Add up a number over records, 0 where it is absent or no number from 0 on."""
    found = (record.get(key, 0.0) for record in metrics)
    return sum(float(x) for x in found if isinstance(x, int | float) and 0 <= x < math.inf)


#: The largest float32: the sum over a round of what clients report stays finite below it.
_LARGEST = 3.4e38
LOSS_SUM, COUNTED, EXAMPLES, PRESENTED = "loss-sum", "counted", "num-examples", "presented"


def totals_record(totals: Metrics) -> dict[str, float | list[float]]:
    """Return the sums of a client for its ``MetricRecord``.

    The count stands there where it is not the number of examples presented.
    """
    counted = {} if totals.count == totals.examples else {COUNTED: float(totals.count)}
    sums = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in totals.sums.items()
    }
    return {LOSS_SUM: totals.loss, **counted, **sums}


def read_totals(record: MetricRecord, objective: Objective) -> Metrics:
    """Read the sums that :func:`totals_record` wrote, beside the number of examples.

    Raises
    ------
    WireError
        If one is missing, not a finite number, or not possible for the objective.
    """
    examples = _number(record, EXAMPLES, least=0.0)
    presented = record.get(PRESENTED, examples)
    if not isinstance(presented, int | float) or presented < 0 or presented % 1:
        raise WireError(f"metric {PRESENTED} = {presented!r} is not a whole number from 0")
    counted = _number(record, COUNTED, least=0.0) if COUNTED in record else presented
    loss = _number(record, LOSS_SUM, least=max(-_LARGEST, objective.least_loss))
    totals = Metrics(loss, int(presented), counted)
    for name in record:
        if name.isidentifier() and name not in RESERVED:
            totals.sums[name] = _sum(record, name)
    if not totals.count and any(np.any(value) for value in totals.sums.values()):
        raise WireError("it has sums over no example")
    try:
        totals.values(objective)
    except ObjectiveError as error:
        raise WireError(f"its sums over {presented:g} presented are impossible: {error}") from None
    return totals


def _number(record: MetricRecord, name: str, *, least: float = -_LARGEST) -> float:
    value = record.get(name)
    if not isinstance(value, int | float) or not least <= value <= _LARGEST:
        raise WireError(f"metric {name} = {value!r} is not a number from {least:g} to {_LARGEST:g}")
    return float(value)


def _sum(record: MetricRecord, name: str) -> Sum:
    if not isinstance(record[name], list):
        return _number(record, name)
    values = np.asarray(record[name], dtype=np.float64)
    if not (np.abs(values) <= _LARGEST).all():
        raise WireError(f"metric {name} is not all numbers up to {_LARGEST:g}")
    return values
