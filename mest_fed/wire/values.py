"""Value codecs: how float32 values become the arrays that travel. The registry and a contract."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from mest_fed.catalogue import VALUE_CODECS
from mest_fed.errors import InputError, WireError
from mest_fed.sparsity.arrays import Floats
from mest_fed.wire.float_formats import Array, BFloat16, Float16, Float32, FloatFormat

#: A codec's number travels in one byte.
_LARGEST = 255
#: Names of the arrays that a codec may send, and the types that an array on the wire may have.
FIELD_NAMES = ("values", "scales", "positions")
WIRE_TYPES = ("<f4", "<f2", "<u2", "|i1", "<u4")

#: Name -> type and length of a one-dimensional array.
Fields = dict[str, tuple[np.dtype[Any], int]]


class ValueCodec(ABC):
    """One way to send the values of all sparse layers, and the dense tensors beside them.

    Attributes
    ----------
    number : int
        What names the codec on the wire.
    dense : FloatFormat
        Format of the dense tensors.
    differences : bool
        Whether the codec sends differences from a reference and feeds its error back. The weights
        of a model without sparse layers then travel so, too.
    takes_all : bool
        With ``differences``: whether dense weights do beside sparse layers, too.
    exact : bool
        Whether all float32 values arrive as they were.
    """

    number: int
    dense: FloatFormat
    differences: ClassVar[bool] = False
    takes_all: ClassVar[bool] = False
    exact: ClassVar[bool] = False

    def value_bytes(self) -> float:
        """Return the bytes of a value, what goes with whole layers left out."""
        many = 1 << 20
        fields = self.fields([many]).values()
        return sum(dtype.itemsize * length for dtype, length in fields) // many

    @abstractmethod
    def fields(self, lengths: Sequence[int]) -> Fields:
        """Say which arrays travel for layers of ``lengths`` values."""

    @abstractmethod
    def pack(self, values: Floats, lengths: Sequence[int]) -> dict[str, Array]:
        """Write the values of all layers, one after the other.

        Raises
        ------
        WireError
            If a value is not finite, before or after rounding.
        """

    @abstractmethod
    def unpack(self, arrays: Mapping[str, Array], lengths: Sequence[int]) -> Floats:
        """Read arrays that are as :meth:`fields` says, as a new float32 array.

        Raises
        ------
        WireError
            If a value is not finite.
        """


class Plain(ValueCodec):
    """Values as they are, in the format of the dense tensors; subclasses name one."""

    def fields(self, lengths: Sequence[int]) -> Fields:
        """Return ``values`` alone."""
        return {"values": (self.dense.dtype, sum(lengths))}

    def pack(self, values: Floats, lengths: Sequence[int]) -> dict[str, Array]:
        """Round."""
        return {"values": self.dense.pack(values)}

    def unpack(self, arrays: Mapping[str, Array], lengths: Sequence[int]) -> Floats:
        """Widen."""
        return self.dense.unpack(arrays["values"])


class SinglePrecision(Plain):
    """Float32."""

    number = 0
    dense = Float32()
    exact = True


class HalfPrecision(Plain):
    """Float16."""

    number = 1
    dense = Float16()


class BrainFloat(Plain):
    """BFloat16."""

    number = 2
    dense = BFloat16()


class Int8(ValueCodec):
    """Whole multiples, -127 to 127, of a scale for each layer: its largest magnitude / 127.

    Dense tensors take half precision: they are few, and statistics of a normalisation layer span
    more than 8 bits hold.
    """

    number = 3
    dense = Float16()
    differences = True
    _levels = 127

    def fields(self, lengths: Sequence[int]) -> Fields:
        """Return ``values`` and ``scales``."""
        return {
            "values": (np.dtype("i1"), sum(lengths)),
            "scales": (np.dtype("<f4"), len(lengths)),
        }

    def pack(self, values: Floats, lengths: Sequence[int]) -> dict[str, Array]:
        """Divide by the scales and round to nearest."""
        if not np.isfinite(values).all():
            raise WireError("not every value is a finite number")
        codes, scales = np.zeros(len(values), np.int8), np.zeros(len(lengths), "<f4")
        for number, part in enumerate(_layers(lengths)):  # so that what is beside them is small
            layer = values[part]
            scales[number] = max(layer.max(), -layer.min()) / np.float32(self._levels)
            if scales[number] > 0:  # one that underflows to zero: the layer waits in the residual
                steps = layer / scales[number]
                np.rint(steps, out=steps)
                codes[part] = steps.clip(-self._levels, self._levels, out=steps)
        return {"values": codes, "scales": scales}

    def unpack(self, arrays: Mapping[str, Array], lengths: Sequence[int]) -> Floats:
        """Multiply by the scales."""
        codes, scales = arrays["values"], arrays["scales"]
        if (codes < -self._levels).any() or not ((scales >= 0) & np.isfinite(scales)).all():
            raise WireError("a code or a scale is out of range")
        values = np.empty(len(codes), np.float32)
        with np.errstate(over="ignore"):
            for scale, part in zip(scales, _layers(lengths), strict=True):
                np.multiply(codes[part], scale, out=values[part])
        if not np.isfinite(values).all():
            raise WireError("not every value is a finite number")
        return values


def _layers(lengths: Sequence[int]) -> Iterator[slice]:
    """Yield where the values of each layer stand."""
    end = 0
    for length in lengths:
        yield slice(end, end + length)
        end += length


@lru_cache(maxsize=64)
def _codec(name: str) -> ValueCodec:
    codec: ValueCodec = VALUE_CODECS.build(name)
    return codec


def value_codec(name: str) -> ValueCodec:
    """Return a codec by name.

    Raises
    ------
    InputError
        If there is none, its number on the wire is another's, or it sends what cannot travel.
    """
    codec = _codec(name)
    number = getattr(codec, "number", None)
    if not isinstance(number, int) or not 0 <= number <= _LARGEST:
        raise InputError(
            f"{VALUE_CODECS.key} = {name!r} has the number {number!r} on the wire; "
            f"allowed: a whole number from 0 to {_LARGEST}"
        )
    sent = [(field, dtype) for field, (dtype, _) in codec.fields([1]).items()]
    for field, dtype in (*sent, (FIELD_NAMES[0], codec.dense.dtype)):
        if field not in FIELD_NAMES or dtype.str not in WIRE_TYPES:
            raise InputError(
                f"{VALUE_CODECS.key} = {name!r} sends {field!r} of type {dtype.str}; allowed: "
                f"{', '.join(FIELD_NAMES)} of one of {', '.join(WIRE_TYPES)}"
            )
    for other in VALUE_CODECS:
        _check_apart(name, other)
    return codec


def open_codecs(*names: str) -> None:
    """Have payloads in these codecs read by their numbers, beside those by name.

    Called for each run. A number then stands for this run's codec, whatever an earlier run in this
    process had.

    Raises
    ------
    InputError
        As :func:`value_codec`, or if two of them have one number.
    """
    numbers = {value_codec(name).number: name for name in names}
    for name in names:
        _check_apart(name, numbers[_codec(name).number])
    _OPENED.update(numbers)


def value_codec_of(number: int) -> ValueCodec:
    """Return a codec by its number on the wire: one that is opened, or one by name.

    Raises
    ------
    WireError
        If there is none.
    """
    for name in (*filter(None, [_OPENED.get(number)]), *VALUE_CODECS):
        if _codec(name).number == number:
            return _codec(name)
    raise WireError(f"value codec {number} is unknown")


#: Names of the codecs that runs of this process brought, by their numbers.
_OPENED: dict[int, str] = {}


def _check_apart(name: str, other: str) -> None:
    """Refuse two codecs of one number."""
    codec, second = _codec(name), _codec(other)
    if codec.number == second.number and type(codec) is not type(second):
        raise InputError(
            f"{VALUE_CODECS.key} = {name!r} has the number {codec.number} on the wire, which is "
            f"{other}'s; allowed: one of its own"
        )
