"""The sparsity schemes by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mest_fed.catalogue import SCHEMES
from mest_fed.errors import InputError, not_allowed
from mest_fed.kernels import Channels, Kernels, Strips
from mest_fed.sparsity.arrays import Indices, counting, namespace, table, whole
from mest_fed.sparsity.layout import Layout

__all__ = ["PATTERNS", "Block", "Channel", "Pattern", "Unstructured", "layout_for"]


@dataclass(frozen=True)
class Block(Layout):
    """``rows`` consecutive output channels at one column of the (out, in * kh * kw) matrix.

    The last strip of a weight whose output channels ``rows`` does not divide is padded: its
    surplus values stay zero, and no count includes them.
    """

    rows: int = 4

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise not_allowed("block rows", self.rows, "a whole number of at least 1")

    @property
    def columns(self) -> int:
        """Columns of the (out, in * kh * kw) matrix."""
        return self.num_weights // self.shape[0]

    @property
    def num_granules(self) -> int:
        """Strips, incomplete ones included."""
        return -(-self.shape[0] // self.rows) * self.columns

    @property
    def width(self) -> int:
        """``rows`` values."""
        return self.rows

    @property
    def storage(self) -> Strips:
        """Strips of ``rows``."""
        return Strips(self.rows)

    def positions(self, slots: Any) -> Any:
        """Return positions of shape ``(n, rows)``: slot = strip * columns + column."""
        slots = whole(slots)
        strip, column = slots // self.columns, slots % self.columns
        row = strip[:, None] * self.rows + counting(self.rows, slots)
        at = row * self.columns + column[:, None]
        return namespace(slots).where(row < self.shape[0], at, self.num_weights)

    def active_weights(self, slots: Any) -> int:
        """Count the weights of slots; an incomplete strip counts what it has."""
        missing = -self.shape[0] % self.rows
        if not missing:
            return len(slots) * self.rows
        last = self.num_granules - self.columns
        return len(slots) * self.rows - missing * int((slots >= last).sum())

    def best_slots(self, dense: npt.NDArray[Any]) -> tuple[Indices, npt.NDArray[Any]]:
        """Return every strip and its L2 norm."""
        if self.shape[0] % self.rows:
            return super().best_slots(dense)
        strips = dense.reshape(-1, self.rows, self.columns)
        lengths = np.sqrt(np.einsum("srk,srk->sk", strips, strips)).reshape(-1)
        return np.arange(self.num_slots), lengths


@dataclass(frozen=True)
class Channel(Layout):
    """One output channel (``axis="out"``) or input channel (``axis="in"``) a granule."""

    axis: Literal["out", "in"] = "out"

    @property
    def num_granules(self) -> int:
        """Channels along the axis."""
        return self.shape[0] if self.axis == "out" else self.shape[1]

    @property
    def width(self) -> int:
        """All weights of one channel."""
        return self.num_weights // self.num_granules

    @property
    def storage(self) -> Channels:
        """Whole channels."""
        return Channels(self.axis)

    def positions(self, slots: Any) -> Any:
        """Return positions of shape ``(n, width)``, row-major within the channel."""
        slots = whole(slots)
        channel = slots[:, None]
        if self.axis == "out":
            return channel * self.width + counting(self.width, slots)
        kernel = self.num_weights // (self.shape[0] * self.shape[1])
        outputs = counting(self.shape[0], slots) * (self.shape[1] * kernel)
        within = (outputs[:, None] + counting(kernel, slots)).reshape(-1)
        return channel * kernel + within


#: Kept cells of each pattern, as ``row * 3 + column``.
PATTERNS = (
    (4, 5, 7, 8),
    (3, 4, 6, 7),
    (1, 2, 4, 5),
    (0, 1, 3, 4),
    (5, 6, 7, 8),
    (3, 4, 5, 7),
    (1, 4, 5, 7),
    (1, 3, 4, 7),
)


@dataclass(frozen=True)
class Pattern(Layout):
    """One 3x3 kernel a granule, eight variants, four values."""

    variants = len(PATTERNS)

    def __post_init__(self) -> None:
        if self.shape[2:] != (3, 3):
            raise InputError(f"the pattern scheme needs 3x3 kernels, not a weight of {self.shape}")

    @property
    def num_granules(self) -> int:
        """One for each (output, input) channel pair."""
        return self.shape[0] * self.shape[1]

    @property
    def width(self) -> int:
        """Four values."""
        return 4

    @property
    def num_groups(self) -> int:
        """Active kernels are balanced over the output filters."""
        return self.shape[0]

    @property
    def max_density(self) -> float:
        """All kernels are active: 4/9."""
        return 4 / 9

    @property
    def storage(self) -> Kernels:
        """Kernels of four taps."""
        return Kernels(PATTERNS)

    def positions(self, slots: Any) -> Any:
        """Return positions of shape ``(n, 4)``: slot = (out * in_channels + in) * 8 + pattern."""
        slots = whole(slots)
        cells = table(PATTERNS, slots)[slots % self.variants]
        return (slots // self.variants * 9)[:, None] + cells


@dataclass(frozen=True)
class Unstructured(Layout):
    """One weight a granule."""

    @property
    def num_granules(self) -> int:
        """One for each weight."""
        return self.num_weights

    @property
    def width(self) -> int:
        """One value."""
        return 1

    @property
    def storage(self) -> Strips:
        """Strips of one row."""
        return Strips(1)

    def positions(self, slots: Any) -> Any:
        """Return the slots themselves: granules are numbered as the flattened weight is."""
        return whole(slots)[:, None]

    def best_slots(self, dense: npt.NDArray[Any]) -> tuple[Indices, npt.NDArray[Any]]:
        """Return every slot and its magnitude."""
        return np.arange(self.num_slots), np.abs(dense).reshape(-1)


#: Layouts that are the same on every machine, by the name that travels.
LAYOUTS: dict[str, type[Layout]] = {
    "unstructured": Unstructured,
    "block": Block,
    "pattern": Pattern,
    "channel": Channel,
}


def pattern_or_block(shape: tuple[int, ...]) -> Layout:
    """Return patterns for 3x3 kernels, for which alone they exist, and blocks otherwise."""
    return Pattern(shape) if shape[2:] == (3, 3) else Block(shape)


def block_of(rows: str) -> Callable[[tuple[int, ...]], Layout]:
    """Return the scheme ``block:ROWS``.

    Raises
    ------
    InputError
        If the number of rows is not one.
    """
    if not rows.isdecimal() or int(rows) < 1:
        allowed = "block:ROWS with a whole number of rows, at least 1"
        raise not_allowed(SCHEMES.key, f"block:{rows}", allowed)
    return partial(Block, rows=int(rows))


@lru_cache(maxsize=64)
def base_scheme(scheme: str) -> str:
    """Return the name of the built-in scheme whose kernels compute the layers of a scheme."""
    if (name := scheme.partition(":")[0]) in SCHEMES:
        return name
    storage = layout_for(scheme, (8, 8, 3, 3)).storage
    if isinstance(storage, Strips):
        return "block" if storage.rows > 1 else "unstructured"
    return "pattern" if isinstance(storage, Kernels) else "channel"


def layout_for(scheme: str, shape: tuple[int, ...]) -> Layout:
    """Return the layout of a weight of ``shape`` under a scheme.

    Parameters
    ----------
    scheme : str
        ``unstructured``, ``block`` (4 rows), ``block:R`` (R rows), ``pattern`` (weights that are
        not 3x3 convolutions take ``block``), ``channel``, or a reference to a user's own.
    shape : tuple of int
        Dense weight shape, ``(out, in, kh, kw)`` or ``(out, in)``.

    Raises
    ------
    InputError
        If the scheme is unknown.
    """
    layout: Layout = SCHEMES.build(scheme, shape)
    return layout
