"""The picture of memory.py: predicted against measured peaks, by torch and of compiled steps."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from harness import Row
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from mest_fed.simulation.report.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    MUTED,
    ORANGE,
    VERMILION,
    house_style,
)

MARKERS = {"torch": "o", "compiled": "^"}
COLOURS = {"resnet32": BLUE, "resnet18": VERMILION, "cnn2": ORANGE, "resnet8": GREEN}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw a point for each case, and the band of 10% above and 3% below (the bounds by torch)."""
    with house_style():
        figure = Figure(figsize=(6.4, 5.2), layout="constrained")
        axes = figure.add_subplot()
        least = min(min(row["ours"], row["peer"]) for row in rows)
        most = max(max(row["ours"], row["peer"]) for row in rows)
        line = [least * 0.8, most * 1.25]
        axes.fill_between(
            line,
            [x * 0.97 for x in line],
            [x * 1.1 for x in line],
            color=FAINT,
            lw=0,
            label="-3% to +10%",
        )
        axes.plot(line, line, color=MUTED, linewidth=0.8)
        for (engine, marker), (model, colour) in product(MARKERS.items(), COLOURS.items()):
            mine = [row for row in rows if (row["engine"], row["model"]) == (engine, model)]
            x, y = [row["peer"] for row in mine], [row["ours"] for row in mine]
            name = f"{model}, {engine}" if mine else None
            how = {"marker": marker, "color": colour, "edgecolor": "white", "linewidth": 0.4}
            axes.scatter(x, y, s=22, label=name, **how)
        axes.set(xscale="log", yscale="log", xlim=line, ylim=line)
        axes.set(xlabel="measured peak, MB", ylabel="predicted peak, MB (modelled)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
            axis.set_ticks([1, 2, 5, 10, 20, 50, 100, 200])
        axes.legend(loc="upper left")
        within = sum(row["within"] for row in rows)
        axes.set_title(f"{within} of {len(rows)} combinations within bounds")
        figure.savefig(path)
