"""Rows of the edge benchmark: medians, spreads, goals and whether they are met."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness import Row, Timing

MEGABYTE = 1e6


@dataclass(frozen=True)
class Case:
    """What a row is of.

    Parameters
    ----------
    part, name, unit : str
        Of the benchmark; of the row; of all its figures. Less is better.
    goal : float or None
        What the median of ours stays at or below.
    below : bool
        Whether the median must stay below the goal, not at it.
    """

    part: str
    name: str
    unit: str
    goal: float | None = None
    below: bool = False


def row_of(case: Case, ours: Sequence[float], peer: Sequence[float] = (), **fields: object) -> Row:
    """Return a row.

    Parameters
    ----------
    case : Case
        What it is of.
    ours, peer : sequence of float
        Figures of the runs of each side; a side that did not run has none.
    **fields : object
        What else is known.
    """
    row: Row = {"part": case.part, "name": case.name, "unit": case.unit, "runs": len(ours)}
    for side, runs in (("ours", ours), ("peer", peer)):
        row[side] = None
        if runs:
            timing = Timing(tuple(runs))
            row[side] = _rounded(timing.median)
            row[f"{side}_spread"] = _rounded(timing.spread)
            row[f"{side}_quartiles"] = [_rounded(value) for value in timing.quartiles]
            row[f"{side}_runs"] = [_rounded(value) for value in runs]
    if row["ours"] and row["peer"]:
        row["ratio"] = round(row["peer"] / row["ours"], 3)
    if case.goal is not None and ours:
        row["goal"] = case.goal
        median = Timing(tuple(ours)).median
        row["met"] = median < case.goal if case.below else median <= case.goal
    return {**row, **fields}


def megabytes(sizes: Sequence[int]) -> list[float]:
    """Return bytes as megabytes."""
    return [size / MEGABYTE for size in sizes]


def _rounded(value: float) -> float:
    return round(value, 4)
