"""The report's figures, each one function of a run."""

from simulations.report.figures.accuracy import accuracy_over_rounds
from simulations.report.figures.accuracy_cost import accuracy_over_time, accuracy_over_traffic
from simulations.report.figures.chart import Chart
from simulations.report.figures.devices import time_and_energy_by_device
from simulations.report.figures.energy import energy_by_tier_and_time
from simulations.report.figures.failures import failures_by_reason
from simulations.report.figures.layers import density_by_layer
from simulations.report.figures.memory import memory_by_tier
from simulations.report.figures.style import house_style
from simulations.report.figures.timeline import what_devices_did
from simulations.report.schema import Run

_FIGURES = {
    "accuracy_rounds": accuracy_over_rounds,
    "accuracy_time": accuracy_over_time,
    "accuracy_traffic": accuracy_over_traffic,
    "memory": memory_by_tier,
    "devices": time_and_energy_by_device,
    "timeline": what_devices_did,
    "energy": energy_by_tier_and_time,
    "layers": density_by_layer,
    "failures": failures_by_reason,
}


def draw_charts(run: Run) -> dict[str, Chart | None]:
    """Draw all figures by name; None where the run has nothing to show."""
    with house_style():
        return {name: draw(run) for name, draw in _FIGURES.items()}


__all__ = ["Chart", "draw_charts"]
