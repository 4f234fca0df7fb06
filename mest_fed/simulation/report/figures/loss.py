"""The loss over rounds: of the model, and of training on the clients."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from mest_fed.run_rows.rounds import RoundRow
from mest_fed.schema import LOSS
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.metric import DECADES, MOST_MARKERS
from mest_fed.simulation.report.figures.style import Chart, finish_chart
from mest_fed.simulation.report.runs import Run

Points = list[tuple[int, float]]


def loss_over_rounds(run: Run) -> Chart | None:
    """Draw the losses that were measured; None where there is none."""
    central = [(row.round, loss) for row in run.rounds if (loss := _central(row)) is not None]
    trained = [(row.round, row.train_loss) for row in run.rounds if row.train_loss is not None]
    spreads = ((row.round, row.client_metrics.get(LOSS.name)) for row in run.rounds)
    clients = [(number, spread.mean) for number, spread in spreads if spread is not None]
    curves: Sequence[tuple[str, str, str, Points]] = (
        ("central test set", style.BLUE, "-", central),
        ("clients, held-out", style.BROWN, "--", clients),
        ("training, on clients", style.VERMILION, ":", trained),
    )
    drawn = [curve for curve in curves if curve[-1]]
    if not drawn:
        return None
    figure = style.new_figure(style.HALF_WIDTH, 4.2)
    axes = figure.subplots()
    for label, colour, line, points in drawn:
        marker = "o" if len(points) <= MOST_MARKERS else ""
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=3, label=label)
    _scale(axes, [value for *_, points in drawn for _, value in points])
    axes.set_xlabel("round")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    style.legend_above(axes, 2)
    return finish_chart(
        figure,
        key="loss",
        title="Loss over rounds",
        caption=_caption(central, trained, clients),
        basis=("measured",),
    )


def _central(row: RoundRow) -> float | None:
    return row.metrics.get(LOSS.name, row.loss)


def _scale(axes: Any, values: list[float]) -> None:
    low, high = min(values), max(values)
    if low > 0 and high / low > DECADES:
        style.log_scale(axes)
    else:
        axes.set_ylim(bottom=min(0.0, low))


def _caption(central: Points, trained: Points, clients: Points) -> str:
    text = ""
    if central:
        number, least = min(central, key=lambda point: point[1])
        text = f"Least loss on the central test set: {least:.4g} at round {number}. "
        if len(central) > 1 and central[-1][1] > 1.1 * least:
            text += f"The last one is {central[-1][1]:.4g}. "
    if trained:
        text += (
            "The loss of training is the mean over the examples that clients presented in a round, "
            "each under the weights that its client had at that moment. "
        )
    if clients:
        text += "That of the clients is over all their held-out examples together. "
    return text.strip()
