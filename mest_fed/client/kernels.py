"""Which kernels clients compute with: as the configuration says, for a fleet or for one device."""

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from logging import getLogger
from pathlib import Path
from time import perf_counter

from torch import nn

from mest_fed.catalogue import KernelMode
from mest_fed.client.capability import Capability
from mest_fed.client.local_round import ClientState
from mest_fed.errors import InputError
from mest_fed.kernels.choice import EVERYTHING_DENSE, Choices
from mest_fed.kernels.table import (
    Table,
    choices_to_rows,
    parse_table,
    read_table,
)
from mest_fed.kernels.tuning import Timing
from mest_fed.memory import Plan
from mest_fed.nn.tuning import by_rule, decide_layers, tune
from mest_fed.task import Task
from mest_fed.training import choose_device

log = getLogger("flwr.mest_fed")

#: Moments of a run at which its densities are looked up.
_MOMENTS = 64


def given_table(task: Task) -> Table | None:
    """Return the table that the configuration names, or None where it names none.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    kernels = task.config.training.kernels
    if not kernels.endswith(".json"):
        return None
    try:
        return read_table(Path(kernels))
    except InputError as error:
        raise InputError(f"training.kernels: {error}") from None


def kernel_table(task: Task, plans: Iterable[Plan]) -> Table:
    """Choose the kernels of some plans, on this machine and torch's present number of threads.

    Parameters
    ----------
    task : Task
        Its configuration says how to choose.
    plans : iterable of Plan
        Where several have one density, the first one's micro-batch is timed.

    Raises
    ------
    InputError
        If the configuration names a table that cannot be read.
    """
    given, started = given_table(task), perf_counter()
    mode = task.config.training.kernels if given is None else given.mode
    rows = {row.case: row for row in given.rows} if given and mode == KernelMode.TUNED else {}
    if choose_device(task.config.training.device).type == "cpu":
        shape, dtype = task.example.input_shape, task.example.input_dtype
        for density, batch in _densities(task, plans).items():
            model = _model(task, density)
            if model is None:
                continue
            if mode == KernelMode.TUNED and given is None:
                found = tune(model, shape, batch, rows, input_dtype=dtype)
            else:
                decide = _dense if mode == KernelMode.DENSE else by_rule
                found = decide_layers(model, shape, batch, decide, rows, input_dtype=dtype)
            rows |= {row.case: row for row in found}
    if given is not None and mode == KernelMode.TUNED:
        return replace(given, rows=tuple(rows.values()))
    if mode == KernelMode.TUNED:
        log.info("kernels: %d cases timed in %.1f s", len(rows), perf_counter() - started)
    return Table.made_here(mode, rows.values())


def client_choices(task: Task, who: Capability, kept: ClientState) -> Choices | None:
    """Return the kernels that a client computes with; None for those of the rule.

    A simulated client takes the run's, which its task holds. A device of its own chooses once, as
    the configuration says, and keeps its choice.
    """
    if task.choices is not None or task.config.training.kernels == KernelMode.RULE:
        return task.choices
    if kept.kernels is None:
        kept.kernels = json.dumps(choices_to_rows(_table_of(task, who.plan)))
    return parse_table(kept.kernels or "", "the kernels in this node's state").choices


@lru_cache(maxsize=16)
def _table_of(task: Task, plan: Plan) -> Table:
    """Choose for a plan, once in a process, which may play many devices."""
    return kernel_table(task, [plan])


def _dense(_: object) -> Timing:
    return Timing(EVERYTHING_DENSE)


def _densities(task: Task, plans: Iterable[Plan]) -> dict[float, int]:
    """Return the densities that plans meet, soft bounds included, and the micro-batch of each."""
    moments = (moment / _MOMENTS for moment in range(_MOMENTS))
    shares = {1.0, *(task.method.bounds(progress).ceiling for progress in moments)}
    densities: dict[float, int] = {}
    for plan in plans:
        for share in sorted(shares):
            densities.setdefault(min(1.0, plan.density * share), plan.micro_batch)
    return densities


def _model(task: Task, density: float) -> nn.Module | None:
    """Build the run's model at a density; None if the scheme cannot hold so much."""
    config = task.config
    sparsity = config.sparsity.model_copy(update={"density": density})
    model = config.model.model_copy(update={"weights": ""})  # a device has no such file
    config = config.model_copy(update={"sparsity": sparsity, "model": model})
    try:
        return task.reconfigured(config, None).build_model()
    except InputError:
        return None
