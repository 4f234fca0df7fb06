"""From the columns of a table to examples: inputs, targets, groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from mest_fed.data.arrays import require
from mest_fed.data.cache import content_digest
from mest_fed.data.images import decoded
from mest_fed.data.parts import Column, Part, Values
from mest_fed.data.series import Series, windows_of
from mest_fed.data.table_files import Table
from mest_fed.data.text import TOKENS, check_length, sequences, split_text
from mest_fed.errors import not_allowed


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what.

    Parameters
    ----------
    inputs, targets : tuple of str
        Empty: found by type and by the names that are usual.
    groups : str
        Whose example a row is, such as ``user_id``; empty: no column.
    categories : tuple of str
        Columns of numbers that stand for kinds, as strings do.
    """

    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    groups: str = ""
    categories: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "Columns":
        """Read ``data.columns``: ``{inputs = [...], targets = "...", groups = "..."}``.

        Raises
        ------
        InputError
            If a key or value is not allowed.
        """
        allowed = ("inputs", "targets", "groups", "categories")
        found: dict[str, Any] = {}
        for key, value in table.items():
            name = key if key.endswith("s") else f"{key}s".replace("categorys", "categories")
            if name not in allowed:
                raise not_allowed("data.columns", key, allowed)
            names = (value,) if isinstance(value, str) else value
            are_texts = isinstance(names, list | tuple) and all(
                isinstance(each, str) and each for each in names
            )
            if not are_texts or len(set(names)) < len(names):
                raise not_allowed(
                    f"data.columns.{key}", value, "a column's name, or a list of them"
                )
            if name == "groups":
                if len(names) != 1:
                    raise not_allowed("data.columns.groups", value, "one column's name")
                found[name] = names[0]
            else:
                found[name] = tuple(names)
        return cls(**found)


@dataclass(frozen=True)
class TableOptions:
    """What ``data.options`` may say of a table.

    Parameters
    ----------
    size : int, optional
        Height and width to scale images to.
    shape : str
        Shape that the inputs of a row take, such as ``3x128``; empty: as they are.
    tokens : {"", "characters", "words"}
        How a column of texts is cut into tokens; empty: each text is a category.
    length : int
        Tokens of a text: longer ones are cut, shorter ones filled with empty tokens.
    series : Series
        See there; ``window``, ``stride`` and ``horizon`` are options, too.
    pixels : tuple of int, optional
        (channels, height, width) that images must have; by default what is found.
    """

    size: int | None = None
    shape: str = ""
    tokens: str = ""
    length: int = 64
    series: Series = field(default_factory=Series)
    pixels: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        check_length(self.length)
        if self.tokens not in ("", *TOKENS):
            raise not_allowed("data.options.tokens", self.tokens, TOKENS)


def read_table(table: Table, columns: Columns, options: TableOptions) -> Part:
    """Read a table as examples.

    Raises
    ------
    InputError
        If columns are missing or are ambiguous, values are missing, or rows are ragged.
    """
    if not table.num_rows:
        raise table.error("it has no rows; allowed: at least one")
    columns = _chosen(table, columns, options)
    if not columns.inputs:
        raise table.error("no column is left for the inputs; allowed: set data.columns.inputs")
    # Targets first: images take longest.
    targets = [_column(table, name, columns, TableOptions()) for name in columns.targets]
    groups = _column(table, columns.groups, columns, options).values if columns.groups else None
    inputs = [_column(table, name, columns, options) for name in columns.inputs]
    if not targets:
        return _next_tokens(table, inputs, groups, options)
    part = Part(table.where, _shaped(table, inputs, options), targets, groups)
    return windows_of(part, options.series) if options.series.window else part


_TARGETS = ("label", "labels", "target", "targets", "class", "fine_label")


def _chosen(table: Table, columns: Columns, options: TableOptions) -> Columns:
    """Fill in the columns that the user has not named."""
    groups = (columns.groups,) if columns.groups else ()
    table.check((*columns.inputs, *columns.targets, *columns.categories, *groups))
    targets, inputs = columns.targets, columns.inputs
    left = [name for name in table.names if name not in (*inputs, *targets, *groups)]
    if not targets and not (options.tokens and inputs):
        usual = [name for name in _TARGETS if name in left]
        if not usual and len(left) != 1 - bool(not inputs):
            raise table.error(
                f"no column is named {', '.join(_TARGETS[:4])}; "
                f"allowed: data.columns.targets, one of {', '.join(table.names)}"
            )
        targets = (usual[0] if usual else left[0],)
        left = [name for name in left if name not in targets]
    if not inputs:
        pictures = [name for name in left if _is_image(table.type_of(name))]
        inputs = tuple(pictures[:1] or left)
    return replace(columns, inputs=inputs, targets=targets)


def _is_image(kind: Any) -> bool:
    types = require("pyarrow", extra="data").types
    return bool(types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _column(table: Table, name: str, columns: Columns, options: TableOptions) -> Column:
    """Read one column as numbers, strings or images.

    Raises
    ------
    InputError
        If values are missing, lists are ragged, or the type is none of these.
    """
    arrow = require("pyarrow", extra="data")
    if _is_image(table.type_of(name)):
        return Column(name, _images(table, name, options))
    types, values = arrow.types, table.column(name)
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise table.error(f"column {name} has no value", row)
    width: list[int] = []
    while isinstance(values, _lists()):
        values, length = _flat(table, name, values, width)
        width.append(length)
    kind = values.type
    if types.is_dictionary(kind):
        values = values.cast(kind.value_type)
        kind = values.type
    shape = (-1, *width) if width and len(values) else (len(values), *width)
    numeric = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    if numeric and name not in columns.categories:
        numbers = values.to_numpy(zero_copy_only=False)
        return Column(name, numbers.reshape(shape), partial(table.as_text, name))
    if numeric or types.is_string(kind) or types.is_large_string(kind) or types.is_temporal(kind):
        texts = np.array(values.cast("string").to_pylist(), dtype=object).reshape(shape)
        if options.tokens and not width and name in columns.inputs and columns.targets:
            texts = _padded(texts, options)
        return Column(name, texts)
    raise table.error(f"column {name} is {kind}; allowed: numbers, strings, lists of them, images")


def _lists() -> tuple[type, ...]:
    arrow = require("pyarrow", extra="data")
    return arrow.ListArray, arrow.LargeListArray, arrow.FixedSizeListArray


def _flat(table: Table, name: str, values: Any, outer: Sequence[int]) -> tuple[Any, int]:
    """Return the values of lists one after another, and the length that all lists have."""
    lengths = values.value_lengths().to_numpy(zero_copy_only=False)
    inner = values.flatten()
    if len(lengths) and (lengths != lengths[0]).any():
        row = int(np.argmax(lengths != lengths[0])) // max(1, int(np.prod(outer)))
        unlike = lengths[int(np.argmax(lengths != lengths[0]))]
        raise table.error(
            f"column {name} is ragged: {unlike} values, {lengths[0]} in row 1; "
            "allowed: lists of one length",
            row,
        )
    if inner.null_count:
        row = inner.is_null().to_pylist().index(True) // max(1, len(inner) // len(values))
        raise table.error(f"column {name} has no value in a list", row)
    return inner, int(lengths[0]) if len(lengths) else 0


def _images(table: Table, name: str, options: TableOptions) -> Values:
    """Return a column of encoded images, decoded; it is read if they are not in the cache."""
    key = f"parquet-{content_digest(table.files)}-{name.encode().hex()[:40]}"
    encoded = partial(_encoded, table, name)
    return decoded(key, encoded, table.where, shape=options.pixels, size=options.size)


def _encoded(table: Table, name: str) -> list[bytes]:
    types = require("pyarrow", extra="data").types
    values = table.column(name)
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise table.error(f"column {name} has no value", row)
    content = values.field("bytes")
    if not (types.is_binary(content.type) or types.is_large_binary(content.type)):
        raise table.error(f"{name}.bytes is {content.type}; allowed: binary")
    if content.null_count:
        row = content.is_null().to_pylist().index(True)
        raise table.error(f"{name}.bytes has no value", row)
    found: list[bytes] = content.to_pylist()
    return found


def _shaped(table: Table, inputs: list[Column], options: TableOptions) -> list[Column]:
    """Give the inputs of a row the shape that the options ask for."""
    if not options.shape:
        return inputs
    try:
        shape = tuple(int(size) for size in options.shape.split("x"))
    except (AttributeError, ValueError):
        raise not_allowed("data.options.shape", options.shape, "sizes such as 3x128") from None
    texts = [column.name for column in inputs if column.is_text]
    if texts:
        raise table.error(
            f"column {texts[0]} has strings; allowed with data.options.shape: numbers"
        )
    values = [column.values.reshape(len(column.values), -1) for column in inputs]
    whole = values[0] if len(values) == 1 else np.concatenate(values, axis=1, dtype=np.float32)
    if min(shape) < 1 or int(np.prod(shape)) != whole.shape[1]:
        allowed = f"a shape of {whole.shape[1]} numbers"
        raise not_allowed("data.options.shape", options.shape, allowed)
    return [Column("inputs", whole.reshape(len(whole), *shape))]


def _padded(texts: Values, options: TableOptions) -> Values:
    """Cut texts into tokens, as many for each."""
    length = options.length
    rows = [split_text(text, options.tokens)[:length] for text in texts]
    return np.array([row + [""] * (length - len(row)) for row in rows])


def _next_tokens(
    table: Table, inputs: list[Column], groups: Values | None, options: TableOptions
) -> Part:
    """Return sequences of a column of texts, of which the next token is predicted.

    Texts of one group follow each other; a sequence has one group's tokens alone.
    """
    if len(inputs) > 1 or not inputs[0].is_text:
        raise table.error("data.options.tokens without targets is for one column of texts")
    texts = inputs[0].values
    owners = np.zeros(len(texts), dtype=np.int64) if groups is None else groups
    parts, names = [], []
    for owner in np.unique(owners):
        tokens = [
            token for text in texts[owners == owner] for token in split_text(text, options.tokens)
        ]
        if len(tokens) > options.length:
            parts.append(sequences(tokens, options.length, table.where))
            names += [owner] * len(parts[-1])
    if not parts:
        raise table.error(f"no group has more than data.options.length = {options.length} tokens")

    def joined(which: str) -> list[Column]:
        arrays = [getattr(part, which)[0].values for part in parts]
        return [Column(inputs[0].name, np.concatenate(arrays))]

    kept = None if groups is None else np.array(names)
    return Part(table.where, joined("inputs"), joined("targets"), kept, overlap=0)
