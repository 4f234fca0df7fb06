"""The report's figures, each one function of a run."""

from collections.abc import Callable

from mest_fed.simulation.report.figures.clients import metric_by_client
from mest_fed.simulation.report.figures.devices import (
    energy_by_tier_and_time,
    time_and_energy_by_device,
)
from mest_fed.simulation.report.figures.failures import failures_by_reason
from mest_fed.simulation.report.figures.labels import labels_by_client
from mest_fed.simulation.report.figures.layers import density_by_layer
from mest_fed.simulation.report.figures.loss import loss_over_rounds
from mest_fed.simulation.report.figures.memory import memory_by_tier
from mest_fed.simulation.report.figures.metric import (
    metric_over_rounds,
    metric_over_time,
    metric_over_traffic,
)
from mest_fed.simulation.report.figures.staleness import staleness_of_updates
from mest_fed.simulation.report.figures.style import Chart, house_style
from mest_fed.simulation.report.figures.timeline import what_devices_did
from mest_fed.simulation.report.runs import FleetRun, Run

#: What there is to draw of any fleet, whatever its clients did.
FLEET_FIGURES: dict[str, Callable[[FleetRun], Chart | None]] = {
    "devices": time_and_energy_by_device,
    "timeline": what_devices_did,
    "energy": energy_by_tier_and_time,
    "failures": failures_by_reason,
}
_FIGURES: dict[str, Callable[[Run], Chart | None]] = {
    "metric_rounds": metric_over_rounds,
    "loss": loss_over_rounds,
    "metric_time": metric_over_time,
    "metric_traffic": metric_over_traffic,
    "clients": metric_by_client,
    "labels": labels_by_client,
    "memory": memory_by_tier,
    "layers": density_by_layer,
    "staleness": staleness_of_updates,
    **FLEET_FIGURES,
}


def draw_charts(run: Run) -> dict[str, Chart | None]:
    """Draw all figures by name; None where the run has nothing to show."""
    with house_style():
        return {name: draw(run) for name, draw in _FIGURES.items()}


__all__ = ["FLEET_FIGURES", "Chart", "draw_charts"]
