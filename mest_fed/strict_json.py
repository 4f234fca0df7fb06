"""JSON from outside: files of a user's, messages, what an earlier process left behind."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mest_fed.errors import InputError

Kind = TypeVar("Kind", dict[str, Any], list[Any])

#: Bytes of a text that is read at all.
LARGEST = 1 << 30
_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """Read a file of JSON; see :func:`parse_json`.

    Raises
    ------
    InputError
        If it cannot be read, too.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise _too_long(str(path))
        return parse_json(path.read_bytes(), str(path), kind)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_json(
    text: str | bytes, source: str, kind: type[Kind], *, infinite_as_null: bool = False
) -> Kind:
    """Parse JSON, and nothing but JSON.

    Parameters
    ----------
    text : str or bytes
        Bytes are UTF-8, perhaps with a byte-order mark.
    source : str
        Where it comes from, for error messages.
    kind : type
        ``dict`` or ``list``: what it must be.
    infinite_as_null : bool
        Whether NaN and infinite numbers become None. Else they are refused, ``1e999`` included.

    Raises
    ------
    InputError
        If it is too long, no JSON, has a key twice, a number that is not finite, or is of another
        kind. The text is one line and begins with ``source``.
    """
    if len(text) > LARGEST:
        raise _too_long(source)
    finite: Callable[[str], Any] = _finite_or_none if infinite_as_null else _finite
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        found = json.loads(
            text,
            object_pairs_hook=_each_key_once,
            parse_constant=finite,
            parse_float=finite,
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: not valid JSON: {error}") from None
    if not isinstance(found, kind):
        got = _NAMES.get(type(found), "a number")
        raise InputError(f"{source}: it is {got}; allowed: {_NAMES[kind]}")
    return found


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return table


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no finite number")
    return value


def _finite_or_none(number: str) -> float | None:
    value = float(number)
    return value if math.isfinite(value) else None


def _too_long(source: str) -> InputError:
    return InputError(f"{source}: more than {LARGEST >> 20} MiB of JSON are not read")
