"""A client's plan: given with the node, kept from the first message, or made now."""

import hashlib
from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Context

from mest_fed.errors import InputError, not_allowed
from mest_fed.memory import Plan, read_plan
from mest_fed.memory.activations import segments_of
from mest_fed.task import Task

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
        plan = _read(str(given))
        _check(task, plan)
        return plan
    kept = context.state.config_records.get(KEPT)
    threads = torch.get_num_threads()  # of this process, which trains
    given_by = f"{budget} {threads} {task.config.model_dump_json()}"
    key = hashlib.sha256(given_by.encode()).hexdigest()
    if kept is None or kept["of"] != key:
        kept = ConfigRecord({"of": key, "plan": _make(task, budget, device, threads).as_json()})
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
def _make(task: Task, budget: int, device: str, threads: int) -> Plan:
    return task.plan(budget, device, threads)


@lru_cache(maxsize=64)
def _read(text: str) -> Plan:
    return read_plan(text, "plan (node config)")


def _check(task: Task, plan: Plan) -> None:
    """Refuse a plan that was made for another batch or another model."""
    batch = task.config.training.batch_size
    if plan.shape.batch != batch:
        allowed = f"{batch} (training.batch_size)"
        raise not_allowed("plan (node config): batch", plan.shape.batch, allowed)
    most = max(0, len(segments_of(task.model)) - 1)
    if plan.savings.frozen > most:
        raise InputError(
            f"plan (node config): frozen = {plan.savings.frozen} is not allowed; "
            f"allowed: 0 to {most}"
        )
