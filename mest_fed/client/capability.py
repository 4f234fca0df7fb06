"""What a client tells the server before the first round: its device, budget and plan."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from logging import getLogger

import torch
from flwr.app import ConfigRecord, Context, RecordDict

from mest_fed.data import find_source
from mest_fed.data.minibatches import scale_fault
from mest_fed.errors import BudgetError, InputError, not_allowed
from mest_fed.memory import Plan, read_plan
from mest_fed.memory.activations import check_frozen
from mest_fed.memory.warm_up import warm_up
from mest_fed.nn.optimizers import WHERE_RELEASED
from mest_fed.process_tasks import PROCESS_TASKS
from mest_fed.system.limits import left_within, limit_of_process, too_tight, usage
from mest_fed.task import Task
from mest_fed.training.warm_up import warm_up_programs
from mest_fed.units import format_bytes, parse_bytes

log = getLogger("flwr.mest_fed")

BUDGET = "mest.budget"


def budget_of(task: Task, context: Context, device: str) -> int:
    """Return the bytes that training may add to this client's process.

    The node config gives ``budget``, or ``memory-limit`` and perhaps ``memory-margin``: then it is
    what the limit leaves beside all that is charged against it before the first training. That is
    measured once and kept in ``Context.state``, so that the plan is the same in every round.

    Raises
    ------
    InputError
        If the node config says nonsense, or the limit leaves nothing.
    """
    node = context.node_config
    if "memory-limit" not in node:
        given = node.get("budget")
        return task.budget(device) if given is None else parse_bytes(str(given), "budget")
    if "budget" in node:
        raise InputError("node config: budget and memory-limit exclude each other; allowed: one")
    limit, margin = parse_bytes(str(node["memory-limit"]), "memory-limit"), margin_of(task, context)
    limits: dict[str, int | float] = {"limit": limit, "margin": margin}
    kept = context.state.config_records.get(BUDGET)
    if kept is None or any(kept[key] != value for key, value in limits.items()):
        kept = ConfigRecord({**limits, **_left(task, limit, margin)})
        context.state[BUDGET] = kept
    return int(str(kept["bytes"]))


def margin_of(task: Task, context: Context) -> float:
    """Return the share of a node's memory limit that stays free: its own, or else the run's.

    Raises
    ------
    InputError
        If the node config gives one that is none.
    """
    margin = context.node_config.get("memory-margin", task.config.memory.margin)
    if not isinstance(margin, int | float) or not 0 <= margin < 1:
        raise not_allowed("memory-margin", margin, "a number in [0, 1)")
    return float(margin)


def _left(task: Task, limit: int, margin: float) -> dict[str, int]:
    """Measure what a limit leaves for training, once data and libraries are there.

    At least one byte: no plan fits into that, and the planner knows how much it needs.
    """
    _warm_up(task)
    present = limit_of_process()
    tightest = limit if present is None else min(limit, present)
    taken = usage()
    left = max(1, left_within(tightest, taken, margin))
    log.info(
        "memory budget: %s of a limit of %s; %s in use before training (measured)",
        *map(format_bytes, (left, tightest, taken)),
    )
    return {"bytes": left, "tightest": tightest, "taken": taken}


def _of_limit(context: Context, error: BudgetError) -> InputError:
    """Return what an error means that no plan fits: of a limit, how large it has to be."""
    kept = context.state.config_records.get(BUDGET)
    if not error.needs or kept is None or "memory-limit" not in context.node_config:
        return error
    tightest, taken, margin = (float(str(kept[key])) for key in ("tightest", "taken", "margin"))
    return too_tight(int(tightest), int(taken), error.needs, margin, "memory-limit")


def _warm_up(task: Task) -> None:
    """Load what every plan needs before training: data, libraries, the planner.

    Measured with torch 2.13: 36 MB for planning and 20 MB for a first training step.
    """
    len(task.partitions)
    load_work(task)


def load_work(task: Task) -> None:
    """Load the code that a node's first message needs: of planning and of training."""
    load_training(task)
    task.planner().smallest()


def load_training(task: Task) -> None:
    """Load the code that a training step needs, by steps of small models."""
    warm_up(task.scheme)
    if task.compiles():
        warm_up_programs(task.scheme)


#: In the node config: the plan as JSON, as ``mest-fed plan --json`` prints it.
GIVEN = "plan"
#: In the node config: the peak of that plan that was measured elsewhere, in bytes.
GIVEN_PEAK = "measured-peak"
#: In ``Context.state``: Flower may start a new process for each message, and planning takes time.
KEPT = "mest.plan"


def plan_of(task: Task, context: Context, budget: int, device: str) -> Plan:
    """Return the plan of a device within its budget.

    Raises
    ------
    InputError
        If the node config gives a plan that is none, or not one of this run.
    BudgetError
        If nothing fits.
    """
    given = context.node_config.get(GIVEN)
    if given is not None:
        return _given(task, str(given))
    kept = context.state.config_records.get(KEPT)
    threads = torch.get_num_threads()  # of this process, which trains
    given_by = f"{budget} {threads} {task.config.model_dump_json()}"
    key = hashlib.sha256(given_by.encode()).hexdigest()
    if kept is None or kept["of"] != key:
        kept = ConfigRecord({"of": key, "plan": make_plan(task, budget, device, threads).as_json()})
        context.state[KEPT] = kept
    return _read(str(kept["plan"]))


def measured_elsewhere(context: Context) -> int | None:
    """Return the measured peak that the node config gives, or None.

    Raises
    ------
    InputError
        If it gives something that is no number of bytes.
    """
    peak = context.node_config.get(GIVEN_PEAK)
    if peak is not None and (not isinstance(peak, int) or isinstance(peak, bool) or peak < 0):
        raise not_allowed(f"{GIVEN_PEAK} (node config)", peak, "a whole number of bytes")
    return peak


@lru_cache(maxsize=64)
def make_plan(task: Task, budget: int, device: str, threads: int) -> Plan:
    """Plan for a device, once in a process, which may play many devices."""
    return task.plan(budget, device, threads)


@lru_cache(maxsize=64)
def _read(text: str) -> Plan:
    return read_plan(text, "plan (node config)")


@lru_cache(maxsize=64)
def _given(task: Task, text: str) -> Plan:
    """Read a plan that the node config gives, and check it; once for all devices that share it."""
    plan = _read(text)
    _check(task, plan)
    return plan


def _check(task: Task, plan: Plan) -> None:
    """Refuse a plan that was made for another batch, optimizer or model."""
    batch = task.config.training.batch_size
    if plan.shape.batch != batch:
        allowed = f"{batch} (training.batch_size)"
        raise not_allowed("plan (node config): batch", plan.shape.batch, allowed)
    settings = task.optimizer(0.0)
    for key, planned, wanted, named in (
        ("optimizer", plan.shape.optimizer, settings.name, "training.optimizer"),
        ("proximal", plan.shape.proximal, settings.proximal > 0, "training.proximal > 0"),
    ):
        if planned != wanted:
            raise not_allowed(f"plan (node config): {key}", planned, f"{wanted!r} ({named})")
    if plan.memory.release_gradients and not settings.can_release:
        raise not_allowed("plan (node config): release_gradients", True, WHERE_RELEASED)
    named = task.config.memory.segments
    if plan.memory.frozen and plan.memory.segments != named:
        allowed = f"{named!r} (memory.segments), by which the server knows what is frozen"
        raise not_allowed("plan (node config): segments", plan.memory.segments, allowed)
    check_frozen(task.model, plan.memory, "plan (node config): frozen")


RECORD = "capability"

#: Numbers that nodes with examples of their own have, one each (with all but certainty).
NUMBERS = 2**31


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
        return PROCESS_TASKS.get(run)
    if _has_own_data(context):
        return PROCESS_TASKS.get(run, path)
    if not find_source(str(run["data.name"])).has_files:
        raise not_allowed(
            "data (of this node)",
            path,
            f"none beside a partition, since data.name = {run['data.name']!r} has no files",
        )
    return PROCESS_TASKS.get({**run, "data.path": path})


def _has_own_data(context: Context) -> bool:
    """Whether the node has examples of its own, and no partition of the run's data set."""
    node = context.node_config
    return bool(node.get("data")) and "partition-id" not in node


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
    if _has_own_data(context):
        partition = total + context.node_id % NUMBERS
    elif not isinstance(partition, int) or not 0 <= partition < total:
        raise InputError(
            f"partition-id = {partition!r} is not allowed (node config); "
            f"allowed: 0 to {total - 1} (fleet.devices = {total})"
        )
    device = str(node.get("device") or task.devices[partition % total])
    budget = budget_of(task, context, device)
    try:
        plan = plan_of(task, context, budget, device)
    except BudgetError as error:
        raise _of_limit(context, error) from None
    return Capability(partition, device, budget, plan, measured_elsewhere(context))


def warn_of_scale(task: Task, context: Context) -> None:
    """Log a warning if the node's own examples are far from the scale of the run's."""
    if _has_own_data(context) and (fault := scale_fault(task.data.train.examples)) is not None:
        log.warning("data (of this node): %s", fault)


def too_few_nodes(task: Task, context: Context) -> str | None:
    """Say that a simulation has fewer nodes than the run's fleet has devices; None if it has not.

    Flower's engine tells each node how many there are (``num-partitions``); a real device is not
    told. The partitions of nodes that are not there would never be trained on.
    """
    nodes, devices = context.node_config.get("num-partitions"), task.config.fleet.devices
    if _has_own_data(context) or not isinstance(nodes, int) or nodes >= devices:
        return None
    return (
        f"num-partitions = {nodes} is not allowed (node config); allowed: at least {devices} "
        f"(fleet.devices = {devices}); "
        f"of flwr run: --federation-config num-supernodes={devices}"
    )


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
                    "frozen": plan.memory.frozen,
                }
            )
        }
    )
