"""Rows that follow each other in time, cut into windows: a series as examples."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mest_fed.data.parts import Column, Part
from mest_fed.errors import not_allowed


@dataclass(frozen=True)
class Series:
    """How rows that follow each other in time become windows.

    Parameters
    ----------
    window : int
        Rows in an example; 0 takes each row as an example.
    stride : int
        Rows from one window to the next; 0 is as ``window``.
    horizon : int
        Rows from a window's last row to the one whose target is predicted.
    """

    window: int = 0
    stride: int = 0
    horizon: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise not_allowed(f"data.options.{name}", value, "a whole number from 0")


def windows_of(part: Part, series: Series) -> Part:
    """Cut rows that follow each other into windows, within each group.

    A window's inputs have the shape (columns, rows); its target is that of the row ``horizon``
    rows after its last.
    """
    for column in part.inputs:
        if column.is_text or column.values.ndim > 1:
            raise part.error(f"column {column.name} is no column of numbers; allowed: a series")
    if not len(part):
        raise part.error("it holds no examples; allowed: at least one")
    window, stride = series.window, series.stride or series.window
    owners = np.zeros(len(part), dtype=np.int64) if part.groups is None else part.groups
    starts: list[npt.NDArray[np.int64]] = []
    for owner in np.unique(owners):
        rows = np.flatnonzero(owners == owner)
        first = np.arange(0, len(rows) - window - series.horizon + 1, stride)
        starts.append(rows[first[:, None] + np.arange(window + series.horizon)])
    taken = np.concatenate([rows for rows in starts if len(rows)] or [np.zeros((0, 1), np.int64)])
    if not len(taken):
        raise part.error(
            f"no group has the {window + series.horizon} rows of a window; "
            "allowed: a smaller data.options.window"
        )
    values = np.stack([column.values.astype(np.float32) for column in part.inputs], axis=1)
    shown = values[taken[:, :window]].transpose(0, 2, 1)
    if not np.isfinite(shown).all():
        row = int(np.argmax(~np.isfinite(values).all(axis=1)))
        raise part.error("an input is not finite; allowed: finite numbers", row)
    last = taken[:, -1]
    return Part(
        part.where,
        [Column("series", np.ascontiguousarray(shown))],
        part.take(last).targets,
        None if part.groups is None else part.groups[last],
        [f"row {row + 1}" for row in last],
        overlap=-(-(window + series.horizon) // stride) - 1,
    )
