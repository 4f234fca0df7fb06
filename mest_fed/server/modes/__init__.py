"""When a round of the server ends, and what it does with those who are late."""

from mest_fed.server.global_model import GlobalModel
from mest_fed.server.modes.buffered import Buffered, SemiSynchronous
from mest_fed.server.modes.synchronous import FirstReplies, SummedRounds
from mest_fed.server.strategy import MestStrategy
from mest_fed.task import Task


def build_strategy(task: Task, model: GlobalModel) -> MestStrategy:
    """Return the strategy of a run.

    Parameters
    ----------
    task : Task
        The run's task; ``server.mode`` and ``server.over_selection`` choose.
    model : GlobalModel
        Where training starts.
    """
    server = task.config.server
    if server.mode == "buffered":
        return Buffered(task, model)
    if server.mode == "semi-sync":
        return SemiSynchronous(task, model)
    return FirstReplies(task, model) if server.over_selection > 1 else SummedRounds(task, model)
