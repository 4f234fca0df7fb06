"""Which layers of the final model are how dense."""

from typing import Any

from matplotlib.ticker import FixedLocator, MaxNLocator

from mest_fed.run_rows.summary import Layer
from mest_fed.simulation.report.figures import style
from mest_fed.simulation.report.figures.style import Chart, finish_chart
from mest_fed.simulation.report.formats import format_count, format_percent, shorten
from mest_fed.simulation.report.runs import Run

_MOST_ROWS = 60


def density_by_layer(run: Run) -> Chart | None:
    """Draw the density of each layer, in the order of the model's modules; None if all are dense.

    Dense layers get a word in place of a bar: a bar to 100% would flatten all the others.
    """
    layers = list(run.summary.layers)
    if len(layers) > _MOST_ROWS:
        largest = {id(x) for x in sorted(layers, key=lambda x: -x.weights)[:_MOST_ROWS]}
        layers = [layer for layer in layers if id(layer) in largest]
    sparse = [layer for layer in layers if layer.density < 1]
    if not sparse:
        return None
    figure = style.new_figure(style.FULL_WIDTH, 0.9 + 0.2 * len(layers))
    axes = figure.subplots()
    _draw_bars(axes, layers, run.summary.target_density)
    style.row_axes(axes, [shorten(layer.name, 36) for layer in layers])
    axes.tick_params(axis="y", labelsize=8)
    return finish_chart(
        figure,
        key="layers",
        title="Density of each layer",
        caption=_caption(list(run.summary.layers), shown=len(layers)),
        basis=("measured",),
    )


def _draw_bars(axes: Any, layers: list[Layer], target: float) -> None:
    limit = max(*(layer.density for layer in layers if layer.density < 1), target % 1) or 1
    for row, layer in enumerate(layers):
        if layer.density < 1:
            axes.barh(row, layer.density, height=0.62, color=style.BLUE)
        else:
            _write(axes, 0.006 * limit, row, "dense")
        active = round(layer.weights * layer.density)
        share = f"{format_percent(layer.density)}, {format_count(active)} of "
        _write(axes, 1.04 * limit, row, f"{share}{format_count(layer.weights)} weights")
    if target < 1:
        dashes = (0, (4, 3))
        axes.axvline(target, color=style.VERMILION, linewidth=1, linestyle=dashes, label="target")
        style.legend_above(axes, 1)
    axes.set_xlim(0, limit * 1.38)
    ticks = [tick for tick in MaxNLocator(6).tick_values(0, limit) if tick <= 1.03 * limit]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(style.PERCENT_TICKS)
    axes.set_xlabel("active weights / weights, in the final global model")


def _write(axes: Any, x: float, row: int, text: str) -> None:
    axes.text(x, row, text, va="center", fontsize=8, color=style.MUTED)


def _caption(layers: list[Layer], *, shown: int) -> str:
    sparse = [layer for layer in layers if layer.density < 1]
    weights = sum(layer.weights for layer in layers)
    active = sum(round(layer.weights * layer.density) for layer in layers)
    densest = max(sparse, key=lambda layer: layer.density)
    sparsest = min(sparse, key=lambda layer: layer.density)
    text = (
        f"{format_count(active)} of {format_count(weights)} weights "
        f"are active ({format_percent(active / max(weights, 1))}, dense layers included). "
    )
    if format_percent(densest.density) != format_percent(sparsest.density):
        text += (
            f"Among the sparse layers {densest.name} is densest "
            f"({format_percent(densest.density)}) and {sparsest.name} sparsest "
            f"({format_percent(sparsest.density)}). "
        )
    if shown < len(layers):
        text += f"Shown are the {shown} largest of {len(layers)} layers."
    return text.strip()
