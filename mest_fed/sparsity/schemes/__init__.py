"""The sparsity schemes by name."""

from collections.abc import Callable

from mest_fed.errors import not_allowed
from mest_fed.sparsity.layout import Layout
from mest_fed.sparsity.schemes.block import Block
from mest_fed.sparsity.schemes.channel import Channel
from mest_fed.sparsity.schemes.pattern import PATTERNS, Pattern
from mest_fed.sparsity.schemes.unstructured import Unstructured

__all__ = ["PATTERNS", "SCHEMES", "Block", "Channel", "Pattern", "Unstructured", "layout_for"]


def _pattern_or_block(shape: tuple[int, ...]) -> Layout:
    # Patterns exist for 3x3 kernels alone; the other layers of a pattern net take blocks.
    return Pattern(shape) if shape[2:] == (3, 3) else Block(shape)


SCHEMES: dict[str, Callable[[tuple[int, ...]], Layout]] = {
    "unstructured": Unstructured,
    "block": Block,
    "pattern": _pattern_or_block,
    "channel": Channel,
}


def layout_for(scheme: str, shape: tuple[int, ...]) -> Layout:
    """Return the layout of a weight of ``shape`` under a scheme.

    Parameters
    ----------
    scheme : str
        ``unstructured``, ``block`` (4 rows), ``block:R`` (R rows), ``pattern`` (weights that are
        not 3x3 convolutions take ``block``) or ``channel``.
    shape : tuple of int
        Dense weight shape, ``(out, in, kh, kw)`` or ``(out, in)``.

    Raises
    ------
    InputError
        If the scheme is unknown.
    """
    name, _, rows = scheme.partition(":")
    if name == "block" and rows.isdecimal() and int(rows) > 0:
        return Block(shape, rows=int(rows))
    if name not in SCHEMES or scheme != name:
        raise not_allowed("scheme", scheme, [*SCHEMES, "block:ROWS"])
    return SCHEMES[name](shape)
