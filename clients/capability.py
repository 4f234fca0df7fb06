"""What a client tells the server before the first round: its device, budget and plan."""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, RecordDict

from clients.budget import budget_of
from clients.plans import measured_elsewhere, plan_of
from mest_fed.errors import InputError, not_allowed
from mest_fed.memory import Plan
from mest_fed.task import Task, task_from_run_config

RECORD = "capability"

#: Numbers that nodes with examples of their own have, one each (with all but certainty).
_NUMBERS = 2**31


@dataclass(frozen=True)
class Capability:
    """A client's place in the fleet.

    Parameters
    ----------
    partition : int
        Which share of the data it holds.
    device : str
        Profile name.
    budget : int
        Bytes that training may add to the process.
    plan : Plan
        How it trains within the budget.
    measured_peak : int or None
        The plan's peak where it was measured elsewhere, as for a simulated device; in bytes.
    """

    partition: int
    device: str
    budget: int
    plan: Plan
    measured_peak: int | None = None


def task_of_node(context: Context) -> Task:
    """Return the run's task with the data that this node has.

    The node config may give ``data``: with ``partition-id`` where the run's data set is on this
    node, and without it the node's own examples (:func:`mest_fed.data.load_own`).

    Raises
    ------
    InputError
        If the run's data set has no files that could be elsewhere.
    """
    run, path = context.run_config, str(context.node_config.get("data", ""))
    if not path:
        return task_from_run_config(run)
    if "partition-id" not in context.node_config:
        return task_from_run_config(run, path)
    if run["data.name"] == "digits":
        raise not_allowed(
            "data (of this node)",
            path,
            "none beside a partition, since data.name = 'digits' has no files",
        )
    return task_from_run_config({**run, "data.path": path})


def capability_of(task: Task, context: Context) -> Capability:
    """Work out a client's capability from its node config and the run's fleet.

    The node config gives ``partition-id``, unless the node has examples of its own: then its number
    comes after those of the fleet. ``device`` and ``budget`` or ``memory-limit`` replace
    what the fleet's mix and the profile say, as a real device does. It may give a ``plan``, too.

    Raises
    ------
    InputError
        If the node config lacks a partition, names one that the fleet has not, or gives a budget
        that is none.
    """
    node = context.node_config
    partition = node.get("partition-id")
    total = task.config.fleet.devices
    if task.own_data:
        partition = total + context.node_id % _NUMBERS
    elif not isinstance(partition, int) or not 0 <= partition < total:
        raise InputError(
            f"partition-id = {partition!r} is not allowed (node config); "
            f"allowed: 0 to {total - 1} (fleet.devices = {total})"
        )
    device = str(node.get("device") or task.devices[partition % total])
    budget = budget_of(task, context, device)
    plan = plan_of(task, context, budget, device)
    return Capability(partition, device, budget, plan, measured_elsewhere(context))


def capability_record(task: Task, capability: Capability) -> RecordDict:
    """Write a capability for the server."""
    plan = capability.plan
    training, held = task.example_counts(capability.partition)
    return RecordDict(
        {
            RECORD: ConfigRecord(
                {
                    "partition": capability.partition,
                    "device": capability.device,
                    "budget": capability.budget,
                    "density": plan.density,
                    "micro-batch": plan.micro_batch,
                    "predicted-peak": plan.footprint.total,
                    "examples": training,
                    "held-out": held,
                }
            )
        }
    )
