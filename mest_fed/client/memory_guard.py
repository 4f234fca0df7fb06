"""A round's memory: measured, held to the budget, and kept from the limit.

A device of its own measures each round. A simulated one shares its process with others; its plan
was measured in a process by itself, and the node config says what came out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger

from flwr.app import Context

from mest_fed.client.capability import Capability, load_training, margin_of
from mest_fed.client.isolation import alone
from mest_fed.errors import OverBudgetError
from mest_fed.system.limits import limit_of_process, usable, usage
from mest_fed.system.peak_meter import PeakMeter
from mest_fed.task import Task
from mest_fed.training import LocalTrainer
from mest_fed.units import format_bytes

log = getLogger("flwr.mest_fed")


@dataclass
class RoundMemory:
    """What a round's memory came to.

    Parameters
    ----------
    peak : int
        Bytes that training added to the process; measured. 0 where measuring is not possible.
    halved : bool
        Whether the limit came so near that the micro-batch was halved.
    """

    peak: int = 0
    halved: bool = False


@contextmanager
def watched(task: Task, who: Capability, context: Context) -> Iterator[RoundMemory]:
    """Measure a round, and fail it if it was over the budget.

    Raises
    ------
    OverBudgetError
        If it was. A round that was measured elsewhere fails before it begins.
    """
    memory = RoundMemory()
    if who.measured_peak is not None:
        _hold(who.measured_peak, who.budget)
        memory.peak = who.measured_peak
        yield memory
        return
    if not _is_a_device(context):
        yield memory
        return
    prepare(task, who.partition)
    task.programs.keep_within(0)  # its budget has room for one at a time
    with PeakMeter() as meter:
        yield memory
    memory.peak = meter.added
    _hold(meter.added, who.budget)


def prepare(task: Task, partition: int) -> None:
    """Load what every plan needs before training: data, and the code of libraries."""
    examples, _ = task.examples(partition)
    task.data.train.touch(examples)
    load_training(task)


def limit_guard(
    task: Task, context: Context, memory: RoundMemory
) -> Callable[[LocalTrainer], None] | None:
    """Return what halves the micro-batch, once, when the process comes near its memory limit.

    None where the node has no limit. Near is within the margin, the share of the limit that shall
    stay free.
    """
    limit = limit_of_process() if "memory-limit" in context.node_config else None
    if limit is None:
        return None
    near = usable(limit, margin_of(task, context))

    def guard(trainer: LocalTrainer) -> None:
        if memory.halved:
            return
        used = usage()
        if used > near and trainer.halve():
            memory.halved = True
            log.warning(
                "memory: %s of a limit of %s in use; the micro-batch is now %d",
                format_bytes(used),
                format_bytes(limit),
                trainer.micro_batch,
            )

    return guard


def _is_a_device(context: Context) -> bool:
    """Whether the process plays this node alone: it says so, or the node what it may take."""
    return alone() or any(key in context.node_config for key in ("budget", "memory-limit"))


def _hold(peak: int, budget: int) -> None:
    if peak > budget:
        raise OverBudgetError(
            f"over the memory budget: training takes {format_bytes(peak)} (measured) of "
            f"{format_bytes(budget)}"
        )
