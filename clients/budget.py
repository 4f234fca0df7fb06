"""A client's memory budget: given, its profile's, or what a memory limit leaves for training."""

from logging import getLogger

from flwr.app import ConfigRecord, Context

from mest_fed.errors import InputError, not_allowed
from mest_fed.memory.limit import limit_of_process, usage
from mest_fed.memory.rehearsal import rehearse
from mest_fed.task import Task
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
    limit = parse_bytes(str(node["memory-limit"]), "memory-limit")
    margin = node.get("memory-margin", task.config.memory.margin)
    if not isinstance(margin, int | float) or not 0 <= margin < 1:
        raise not_allowed("memory-margin", margin, "a number in [0, 1)")
    wish: dict[str, int | float] = {"limit": limit, "margin": float(margin)}
    kept = context.state.config_records.get(BUDGET)
    if kept is None or any(kept[key] != value for key, value in wish.items()):
        kept = ConfigRecord({**wish, "bytes": _left(task, limit, margin)})
        context.state[BUDGET] = kept
    return int(str(kept["bytes"]))


def _left(task: Task, limit: int, margin: float) -> int:
    """Measure what a limit leaves for training, once data and libraries are there."""
    _warm_up(task)
    present = limit_of_process()
    tightest = limit if present is None else min(limit, present)
    taken = usage()
    left = int(tightest * (1 - margin)) - taken
    if left < 1:
        raise InputError(
            f"memory-limit = {format_bytes(tightest)} leaves nothing for training: "
            f"{format_bytes(taken)} are in use before it (measured), and a margin of {margin:.0%}"
        )
    log.info(
        "memory budget: %s of a limit of %s; %s in use before training (measured)",
        *map(format_bytes, (left, tightest, taken)),
    )
    return left


def _warm_up(task: Task) -> None:
    """Bring in what is there before training whatever the plan: data, libraries, the planner.

    Measured with torch 2.13: 36 MB for planning and 20 MB for a first training step.
    """
    len(task.partitions)
    sparsity = task.config.sparsity
    rehearse(None if sparsity.method == "dense" else sparsity.scheme)
    task.planner().smallest()
