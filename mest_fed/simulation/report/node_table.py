"""The nodes of a run on real devices, one by one: what each trained with, did and sent."""

from collections import defaultdict
from statistics import median

from mest_fed.run_rows.rounds import ClientRow
from mest_fed.run_rows.summary import RealDevice
from mest_fed.schema import TaskStatus
from mest_fed.simulation.report.formats import format_count, format_percent
from mest_fed.simulation.report.runs import Run
from mest_fed.simulation.report.tables import NOTHING
from mest_fed.units import format_bytes, format_seconds

#: More nodes than these are folded away.
OPEN_NODES = 12

NODE_COLUMNS = (
    ("device", ""),
    ("examples", ""),
    ("updates accepted", "measured"),
    ("median task", "measured"),
    ("density", ""),
    ("budget", ""),
    ("peak, of budget", "measured"),
    ("sent", "measured"),
)


def node_rows(run: Run) -> list[tuple[str, ...]]:
    """Format each node, by partition, in the columns of ``NODE_COLUMNS`` after its name.

    Empty for a simulated run, and for one of an earlier version, whose summary has no nodes.
    """
    tasks = defaultdict(list)
    for task in run.tasks:
        tasks[task.partition].append(task)
    titles = {tier.profile: tier.title for tier in run.summary.tiers}
    nodes = sorted(run.summary.nodes, key=lambda node: node.partition)
    return [
        (
            node.name,
            titles.get(node.device, node.device),
            format_count(node.examples),
            *_done(tasks[node.partition]),
            format_percent(node.density),
            format_bytes(node.budget_bytes),
            _peak(node),
            format_bytes(sum(task.bytes_up + task.bytes_down for task in tasks[node.partition])),
        )
        for node in nodes
    ]


def _done(tasks: list[ClientRow]) -> tuple[str, str]:
    """Return how many of a node's tasks were accepted, and how long one of them took."""
    taken = [task.seconds for task in tasks if task.status == TaskStatus.OK]
    time = format_seconds(median(taken)) if taken else NOTHING
    return f"{format_count(len(taken))} of {format_count(len(tasks))}", time


def _peak(node: RealDevice) -> str:
    if not node.measured_peak_bytes:
        return NOTHING
    share = format_percent(node.measured_peak_bytes / max(node.budget_bytes, 1))
    return f"{format_bytes(node.measured_peak_bytes)}, {share}"
