"""Which labels each client has: how far the split is from identically distributed."""

from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.run_rows.facts import LabelCounts
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.style import Chart, finish_chart
from mest_fed.simulation.report.formats import count_of, format_count, shorten
from mest_fed.simulation.report.runs import Run

_MOST_CLIENTS = 60
_MOST_CLASSES = 40
_SHADES = "Blues"
#: From this share of the darkest shade on, a number in a cell is white.
_DARK = 0.6
#: Characters of a class's name that fit beside the next one.
_WIDEST = 3
#: Up to so many cells, each has its number.
_MOST_NUMBERED = 600

Counts = npt.NDArray[np.int64]


def distances(counts: Counts) -> list[float]:
    """Return each row's total variation distance from all rows together, in [0, 1].

    Half the sum of the absolute differences of the shares: 0 where a client has all labels in the
    same shares as the fleet. Rows without examples are left out.
    """
    rows = counts[counts.sum(axis=1) > 0]
    if not len(rows):
        return []
    together = rows.sum(axis=0) / rows.sum()
    shares = rows / rows.sum(axis=1, keepdims=True)
    return [float(each) for each in np.abs(shares - together).sum(axis=1) / 2]


def labels_by_client(run: Run) -> Chart | None:
    """Draw a row a client and a column a class; None where a run has no count of labels."""
    labels = run.labels
    if labels is None or not labels.classes or not labels.counts:
        return None
    counts = np.asarray(labels.counts, dtype=np.int64)
    rows = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), _MOST_CLIENTS)).astype(int))
    common = np.sort(np.argsort(-counts.sum(axis=0), kind="stable")[:_MOST_CLASSES])
    shown = counts[np.ix_(rows, common)]
    totals = counts[rows].sum(axis=1)
    figure = style.new_figure(style.FULL_WIDTH, 1.2 + 0.2 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    _draw_cells(left, shown, totals)
    names = [shorten(labels.classes[index], 12) for index in common]
    turned = 90 if max(map(len, names)) > _WIDEST else 0
    left.set_xticks(range(len(names)), names, rotation=turned)
    style.row_axes(left, [f"client {labels.partitions[row]}" for row in rows])
    left.grid(False)
    left.tick_params(axis="y", labelsize=7.5)
    left.set_xlabel("class; darker is a larger share of the client's examples")
    right.barh(range(len(rows)), totals, height=0.7, color=style.SLATE)
    right.tick_params(axis="y", labelleft=False, length=0)
    right.spines["left"].set_visible(False)
    right.grid(False, axis="y")
    right.set_xlabel("examples")
    return finish_chart(
        figure,
        key="labels",
        title="Labels of each client",
        caption=_caption(labels, counts, len(rows), len(common)),
        basis=("measured",),
    )


def _draw_cells(axes: Any, counts: Counts, totals: Counts) -> None:
    """Draw the shares as cells, and the counts in them where there are few enough."""
    shares = counts / np.maximum(totals, 1)[:, None]
    edges = (np.arange(counts.shape[1] + 1) - 0.5, np.arange(counts.shape[0] + 1) - 0.5)
    most = max(shares.max(), 1e-9)
    axes.pcolormesh(*edges, shares, cmap=_SHADES, vmin=0, vmax=most, edgecolor="white", lw=0.5)
    if counts.size > _MOST_NUMBERED:
        return
    for (row, column), number in np.ndenumerate(counts):
        if number:
            dark = shares[row, column] > _DARK * most
            axes.text(
                column,
                row,
                str(number),
                ha="center",
                va="center",
                fontsize=7,
                color=style.ON_DARK if dark else style.ON_LIGHT,
            )


def _caption(labels: LabelCounts, counts: Counts, rows: int, columns: int) -> str:
    text = "Examples of each class on each client, held-out ones included. "
    if rows < labels.devices:
        text += f"Shown are {rows} of {count_of(labels.devices, 'client')}, evenly spaced. "
    if columns < len(labels.classes):
        text += f"Shown are the {columns} most frequent of {len(labels.classes)} classes. "
    apart = distances(counts)
    if apart:
        few = f"of {format_count(len(counts))} counted " if len(counts) < labels.devices else ""
        text += (
            f"How unlike the clients {few}are: half of them have shares of labels whose distance "
            f"from those of all together is {median(apart):.2f} or more, the largest is "
            f"{max(apart):.2f} (total variation: 0 is the same mix everywhere, 1 no label in "
            "common)."
        )
    return text.strip()
