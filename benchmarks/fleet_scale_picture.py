"""The picture of fleet_scale.py: seconds against cohort, and memory over the rounds."""

from collections.abc import Sequence
from pathlib import Path

from harness import Row
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mest_fed.simulation.report.figures.style import (
    BLUE,
    FULL_WIDTH,
    GREEN,
    MUTED,
    ORANGE,
    house_style,
    new_figure,
)

PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows; the first is the largest cohort of the largest population."""
    largest = rows[0]
    with house_style():
        figure = new_figure(FULL_WIDTH, 4.2)
        left, right = figure.subplots(1, 2)
        _draw_seconds(left, rows, largest)
        _draw_memory(right, largest)
        figure.savefig(path)


def _draw_seconds(axes, rows: Sequence[Row], largest: Row) -> None:
    cohorts = sorted({row["cohort"] for row in rows})
    ends = [cohorts[0] / 1.5, cohorts[-1] * 1.5]
    line = [largest["ours"] * cohort / largest["cohort"] for cohort in ends]
    axes.plot(ends, line, color=MUTED, lw=0.8, ls="--", label="in proportion to the largest cohort")
    kinds = dict.fromkeys(row["population"] for row in rows)
    for population, colour, marker in zip(kinds, (BLUE, ORANGE), "os", strict=False):
        mine = sorted((r for r in rows if r["population"] == population), key=lambda r: r["cohort"])
        medians = [row["ours"] for row in mine]
        spread = [
            [row["ours"] - row["ours_quartiles"][0] for row in mine],
            [row["ours_quartiles"][1] - row["ours"] for row in mine],
        ]
        axes.errorbar(
            [row["cohort"] for row in mine],
            medians,
            yerr=spread,
            color=colour,
            marker=marker,
            capsize=3,
            lw=1.2,
            label=f"{population:,} devices",
        )
    axes.set(xscale="log", yscale="log", xlim=ends, xlabel="devices a round (cohort)")
    axes.set(ylabel="seconds a round (measured)", title="Time: medians and quartiles over rounds")
    axes.set_xticks(cohorts)
    axes.xaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_major_formatter(PLAIN)
    axes.minorticks_off()
    axes.legend(loc="upper left")


def _draw_memory(axes, row: Row) -> None:
    parts = (("workers", BLUE), ("driver", GREEN))
    by_round = {int(number): sizes for number, sizes in row["memory_by_round_gb"].items()}
    numbers = sorted(by_round)
    series = [[by_round[number][kind] for number in numbers] for kind, _ in parts]
    axes.stackplot(
        numbers,
        *series,
        colors=[colour for _, colour in parts],
        alpha=0.75,
        labels=[kind for kind, _ in parts],
        lw=0,
    )
    axes.set(xlabel="round", ylabel="GB resident (PSS, measured)", xlim=(numbers[0], numbers[-1]))
    axes.set(ylim=(0, 1.35 * max(map(sum, zip(*series, strict=True)))))
    axes.set_title(f"Memory: {row['population']:,} devices, {row['cohort']:,} of them a round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", ncols=2)
