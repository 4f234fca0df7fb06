"""One part of a data set as it was read: columns of numbers or strings, each with its place."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.data.minibatches import Indices
from mest_fed.errors import InputError
from mest_fed.units import number_of

Values = npt.NDArray[Any]

#: Integer inputs of these types are tokens; narrower ones are numbers, and uint8 is an image.
TOKENS = (np.dtype(np.int64), np.dtype(np.int32))
#: Examples that are looked at together, so that checks and statistics take little memory.
_CHUNK = 4096
#: How many allowed values an error names.
_NAMED = 12


@dataclass(frozen=True, eq=False)
class Column:
    """One column as it was read.

    Parameters
    ----------
    name : str
        What the file calls it.
    values : array
        Shape ``(n, ...)``: numbers, or strings.
    as_text : callable, optional
        Reads the column again as strings, where numbers stand for something that train has as
        strings.
    """

    name: str
    values: Values
    as_text: Callable[[], Values] | None = None

    @property
    def is_text(self) -> bool:
        """Whether its values are strings."""
        return self.values.dtype.kind in "UO"

    def strings(self) -> Values:
        """Return its values as strings."""
        if self.is_text:
            return self.values
        return self.values.astype(str) if self.as_text is None else self.as_text()


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a data set as it was read, train or test for example.

    Parameters
    ----------
    where : str
        Names key and file in errors.
    inputs, targets : sequence of Column
        Each of as many rows.
    groups : array, optional
        Shape ``(n,)``, numbers or strings.
    places : sequence of str, optional
        Names each example in errors, as its file does; by default its row, counted from 1.
    overlap : int, optional
        For windows of a series, in the order of time: how many that follow share some of its rows.
    """

    where: str
    inputs: Sequence[Column]
    targets: Sequence[Column]
    groups: Values | None = None
    places: Sequence[str] | None = None
    overlap: int | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.targets[0].values)

    def error(self, reason: str, row: int | None = None) -> InputError:
        """Build the error for something in this part, or in one example of it."""
        place = ""
        if row is not None:
            place = f", row {row + 1}" if self.places is None else f", {self.places[row]}"
        return InputError(f"{self.where}{place}: {reason}")

    def take(self, rows: Indices) -> "Part":
        """Return some examples."""

        def of(column: Column) -> Column:
            again = column.as_text
            text = None if again is None else lambda: again()[rows]
            return Column(column.name, column.values[rows], text)

        return replace(
            self,
            inputs=[of(column) for column in self.inputs],
            targets=[of(column) for column in self.targets],
            groups=None if self.groups is None else self.groups[rows],
            places=None if self.places is None else [self.places[row] for row in rows],
        )


def text_of(part: Part, column: Column) -> Values:
    """Return a column's values as numpy's own strings.

    Raises
    ------
    InputError
        If something among them is no string.
    """
    values = column.values
    if values.dtype.kind == "O":
        for row, value in enumerate(values.reshape(-1)):
            if not isinstance(value, str):
                row //= max(1, values.size // len(values))
                kind = type(value).__name__
                raise part.error(
                    f"column {column.name} holds {kind}; allowed: numbers, strings", row
                )
        values = values.astype(str)
    return values


def codes_of(
    part: Part, what: str, values: Values, names: Sequence[str], width: int = 1
) -> npt.NDArray[np.int64]:
    """Return the position of each string among names; ``width`` strings make a row."""
    texts, order = values.astype(str), np.argsort(names)
    ordered = np.array(names)[order]
    place = np.searchsorted(ordered, texts)
    place[place == len(ordered)] = 0
    wrong = ordered[place] != texts
    if wrong.any():
        at = int(np.argmax(wrong))
        shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        raise part.error(
            f"{what} {str(texts[at])!r} was never seen in train; allowed: {shown}", at // width
        )
    found: npt.NDArray[np.int64] = order[place]
    return found


def token_ids(part: Part, column: Column, tokens: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return a column of sequences of strings as positions in the vocabulary."""
    flat = column.strings().reshape(-1)
    width = column.values.shape[1]
    return codes_of(part, f"column {column.name}", flat, tokens, width).reshape(column.values.shape)


def numbers_of(part: Part, column: Column) -> Values:
    """Return a column's numbers: uint8, int64 or float32.

    Raises
    ------
    InputError
        If they are no numbers, or NaN or infinite.
    """
    values = column.values
    if column.is_text:
        raise part.error(
            f"column {column.name} holds {_first_text(part, column)}; allowed: numbers"
        )
    if values.dtype == np.uint8 or values.dtype in TOKENS:
        return values
    if values.dtype.kind not in "fiub":
        raise part.error(f"{column.name} is {values.dtype}; allowed: numbers")
    if values.dtype.kind == "f":
        _check_finite(part, column.name, values)
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32, copy=False)
    if values.dtype == np.float64:
        _check_finite(part, column.name, numbers)
    return numbers


def check_not_negative(part: Part, name: str, tokens: Values) -> None:
    """Refuse whole numbers that are no tokens.

    Raises
    ------
    InputError
        If one is below 0; names its row.
    """
    if tokens.size and tokens.min() < 0:
        row = int(np.argmax((tokens < 0).reshape(len(tokens), -1).any(axis=1)))
        raise part.error(
            f"{name} has {tokens[row].min()} among whole numbers, which are tokens; "
            "allowed: tokens from 0, or floats",
            row,
        )


def _first_text(part: Part, column: Column) -> str:
    return repr(text_of(part, column).flat[0].item())


def _check_finite(part: Part, name: str, values: Values) -> None:
    for start, chunk in chunks(values):
        wrong = ~np.isfinite(chunk)
        if wrong.any():
            row = int(np.argmax(wrong.reshape(len(chunk), -1).any(axis=1)))
            value = chunk[row][wrong[row]].flat[0] if chunk.ndim > 1 else chunk[row]
            raise part.error(f"{name} has {value}; allowed: finite numbers", start + row)


def raw_targets(part: Part) -> Values:
    """Return the targets as numbers of shape ``(n,)`` or ``(n, ...)``.

    Several columns stand side by side. Whole numbers in several columns are numbers: several
    labels of an example, or what is to be predicted.
    """
    for column in part.targets:
        if column.values.dtype.kind not in "fiub":
            given = _first_text(part, column) if column.is_text else str(column.values.dtype)
            several = " beside other targets" if len(part.targets) > 1 else ""
            raise part.error(f"target {column.name} is {given}{several}; allowed: numbers")
        if column.values.dtype.kind == "f":
            _check_finite(part, f"target {column.name}", column.values)
    if len(part.targets) > 1:
        flat = [column.values.reshape(len(part), -1) for column in part.targets]
        return np.concatenate(flat, axis=1).astype(np.float32)
    values = part.targets[0].values
    if values.ndim == 2 and values.shape[1] == 1 and values.dtype.kind != "f":
        values = values[:, 0]
    return values.astype(np.int64) if values.dtype == bool else values


def are_tokens(targets: Values, inputs: Values) -> bool:
    """Whether there is a target for each position of a sequence of tokens."""
    whole = targets.dtype.kind in "iu" and targets.ndim > 1
    return whole and inputs.dtype == np.int64 and targets.shape == inputs.shape


def group_codes(part: Part) -> npt.NDArray[np.int64]:
    """Return the position of each example's group among the names, in order."""
    assert part.groups is not None
    groups = part.groups
    if groups.shape != (len(part),):
        given = shape_text(groups.shape)
        raise part.error(
            f"groups have shape {given}; allowed: one for each of {number_of(len(part), 'example')}"
        )
    if groups.dtype.kind == "f":
        _check_finite(part, "group", groups)
    return np.unique(groups, return_inverse=True)[1].reshape(-1).astype(np.int64)


def chunks(values: Values) -> Iterable[tuple[int, Values]]:
    """Return some thousand examples at a time, each chunk with the row that it begins at."""
    return ((start, values[start : start + _CHUNK]) for start in range(0, len(values), _CHUNK))


def shape_text(shape: tuple[int, ...]) -> str:
    """Write a shape as ``3 x 32 x 32``."""
    return " x ".join(map(str, shape)) or "no shape"
