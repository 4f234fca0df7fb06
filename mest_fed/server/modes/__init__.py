"""When a round of the server ends, and what it does with those who are late."""

from mest_fed.catalogue import MODES
from mest_fed.config import RunConfig
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.modes.synchronous import FirstReplies, SummedRounds
from mest_fed.server.repeated_update import check_repeatable
from mest_fed.server.strategy import MestStrategy
from mest_fed.task import Task


def build_strategy(task: Task, model: GlobalModel) -> MestStrategy:
    """Return the strategy of a run.

    Parameters
    ----------
    task : Task
        The run's task; ``server.mode`` chooses.
    model : GlobalModel
        Where training starts.

    Raises
    ------
    InputError
        If there is no such mode, or it cannot work with the configuration, or updates are slopes
        and do not tell all (:func:`check_repeatable`).
    """
    mode = task.config.server.mode
    check_mode(task.config)
    check_repeatable(task)
    strategy: MestStrategy = MODES.build(mode, task, model)
    return strategy


def check_mode(config: RunConfig) -> None:
    """Refuse a configuration with which ``server.mode`` cannot work.

    Raises
    ------
    InputError
        As ``check_config`` of the mode says, if it has one.
    """
    check = getattr(MODES.find(config.server.mode), "check_config", None)
    if check is not None:
        check(config)


def synchronous(task: Task, model: GlobalModel) -> MestStrategy:
    """Return the strategy of synchronous rounds; ``server.over_selection`` chooses which."""
    first = task.config.server.over_selection > 1
    return FirstReplies(task, model) if first else SummedRounds(task, model)
