"""How many bytes the content of a Flower message is."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.app import RecordDict

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
