"""What is tried of a task before its run, so that faults of a user's own things cost one line."""

import numpy as np

from mest_fed.catalogue import AUGMENTATIONS
from mest_fed.config.stopping import StopRule
from mest_fed.data import Batches
from mest_fed.errors import InputError
from mest_fed.rng import numpy_generator
from mest_fed.task import Task
from mest_fed.training import try_objective

#: Examples on which a learning task is tried.
_TRIED = 32


def try_examples(task: Task) -> None:
    """Try model and objective on a few examples, before anything is trained.

    Parameters
    ----------
    task : Task
        The run's.

    Raises
    ------
    InputError
        If loss or metrics are not usable, the objective does not go with the data and the model,
        forgetting is asked for and it does not tell what is correct, or ``server.stop_when`` names
        no metric of it.
    """
    objective, train = task.objective, task.data.train
    if rule := StopRule.parse(task.config.server.stop_when):
        rule.watched(objective)
    few = np.unique(np.linspace(0, len(train) - 1, _TRIED).astype(np.int64))
    (batch,) = Batches(train, few, _TRIED)
    outputs = task.architecture.try_out(task.build_model(), batch.part())
    if not outputs.isfinite().all():
        raise InputError(
            f"model.name = {task.config.model.name!r} gives outputs that are not finite for "
            "the first examples of data.name; allowed: finite numbers"
        )
    try_objective(objective, outputs, batch.targets, key=task.task_key)
    if task.forgetting.active and objective.correct(outputs, batch.targets) is None:
        raise InputError(
            f"forgetting.fraction = {task.forgetting.fraction} is not allowed with "
            f"{task.task_key}, which does not tell what is correct; allowed: 0"
        )


def try_settings(task: Task) -> None:
    """Use schedule, optimizer and augmentation once.

    Parameters
    ----------
    task : Task
        The run's.

    Raises
    ------
    InputError
        If one of a user's own raises, or gives what it should not.
    """
    for number in range(task.config.run.rounds):
        task.optimizer(task.interval.progress(number))
    task.optimizer(0.0).build(task.model).close()
    name, seed = task.config.data.augmentation, task.config.run.seed
    two = Batches(
        task.data.train,
        np.arange(min(2, len(task.data.train))),
        2,
        generator=numpy_generator(seed, "try"),
        augmentation=name,
    )
    AUGMENTATIONS.call(name, lambda: next(iter(two)))
