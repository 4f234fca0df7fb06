"""The answer of ``mest-fed plan``: the plan of one device, or those of a fleet."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from mest_fed.cli.node_memory import NodeMemory
from mest_fed.cli.options import PICTURE
from mest_fed.cli.planning.report import FleetReport, PlanReport
from mest_fed.cli.planning.request import Budget, PlanRequest, budget_within, device_budget
from mest_fed.cli.planning.round_time import Deadline, check_examples
from mest_fed.cli.planning.text import print_fleet, print_report
from mest_fed.devices import load_profile
from mest_fed.errors import InputError, not_allowed
from mest_fed.system.files import writing
from mest_fed.task import Task


@dataclass(frozen=True)
class Wanted:
    """What is asked beside the model and its method.

    Parameters
    ----------
    memory : NodeMemory
        The budget or limit, if one is given.
    device : str or None
        Profile whose speed, and budget, count.
    threads : int or None
        That the device computes with.
    as_json : bool
        Whether JSON is printed.
    picture : Path or None
        Where memory against time is drawn.
    deadline : Deadline or None
        When a round of the device shall be done.
    """

    memory: NodeMemory
    device: str | None
    threads: int | None
    as_json: bool
    picture: Path | None
    deadline: Deadline | None = None


def answer(request: PlanRequest, wanted: Wanted) -> None:
    """Plan, and print what was found."""
    memory, device = wanted.memory, wanted.device
    profile = None if device is None else load_profile(device, "--device")
    if wanted.deadline is not None:
        if profile is None:
            raise InputError("--deadline needs a --device NAME, whose speed counts")
        check_examples(bool(request.name), wanted.deadline)
    if request.task.config.model.weights:
        request.task.build_model()  # which checks the file
    with _no_collector():
        if device is None and memory.budget is None and memory.limit is None:
            _report_fleet(request, wanted.as_json, wanted.picture)
            return
        found = _budget(memory, request.task, device)
        threads = _threads(wanted.threads, device)
        report = PlanReport(request, found, threads, profile, wanted.deadline)
        _report(report, wanted.as_json, wanted.picture)


def _budget(memory: NodeMemory, task: Task, device: str | None) -> Budget:
    """Return the budget that the options give, or else the device's."""
    if memory.budget is not None:
        return Budget(memory.budget)
    if memory.limit is not None:
        return budget_within(memory, task.config.memory.margin)
    assert device is not None
    return device_budget(task, device)


def _report_fleet(request: PlanRequest, as_json: bool, picture: Path | None) -> None:
    """Print the plans of a configuration's fleet."""
    if not request.name:
        raise InputError(
            "plan needs a budget; allowed: --budget BYTES, --memory-limit BYTES, the budget that "
            "--device NAME has, or those of a fleet, from CONFIG.toml or --preset NAME"
        )
    if picture is not None:
        raise not_allowed(PICTURE, str(picture), "beside a --device or a budget")
    report = FleetReport(request)
    if as_json:
        typer.echo(json.dumps(report.as_table(), indent=2))
    else:
        print_fleet(report)


def _report(report: PlanReport, as_json: bool, picture: Path | None) -> None:
    """Print the report, and draw it if that is wanted."""
    if as_json:
        typer.echo(json.dumps(report.as_table(frontier=picture is not None), indent=2))
    else:
        print_report(report)
    if picture is not None:
        _draw(report, picture)
        if not as_json:
            typer.echo(f"picture: {picture}")


def _threads(given: int | None, device: str | None) -> int:
    if given is None:
        return torch.get_num_threads() if device is None else 1
    return given


@contextmanager
def _no_collector() -> Iterator[None]:
    """Leave cyclic garbage alone: looking for it in all of torch time and again takes a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _draw(report: PlanReport, picture: Path) -> None:
    from mest_fed.cli.planning.picture import draw_frontier

    with writing(picture, PICTURE):
        draw_frontier(report, picture)
