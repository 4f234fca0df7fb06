"""One seed gives the same bits whatever the cores and threads of the machine that simulates."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_run import tiny_config

from mest_fed.errors import BudgetError
from mest_fed.memory import footprint
from mest_fed.simulation.fleet import Fleet
from mest_fed.task import Task

#: The quickstart's smallest devices, whose budget is tight, for one round.
SETTINGS = (
    "run.rounds=1",
    "server.clients_per_round=3",
    "fleet.mix=rpi-zero-2w:1",
    "fleet.budgets=rpi-zero-2w:2.7MB",
)
RUN = (*(part for each in SETTINGS for part in ("--set", each)), "--workers", "0", "--quiet")
MACHINES = {"one core": ("", 1), "three threads": ("3", None)}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def begin(folder, threads, cores):
    """Start the quickstart in a process with so many threads, on so many of the cores."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = threads
    confine = None
    if cores is not None and hasattr(os, "sched_setaffinity"):
        confine = partial(os.sched_setaffinity, 0, sorted(os.sched_getaffinity(0))[:cores])
    command = [
        sys.executable,
        "-c",
        "from mest_fed.cli import main; main()",
        "simulate",
        *RUN,
        "--out",
        str(folder),
    ]
    return subprocess.Popen(command, env=environment, preexec_fn=confine)


def found(folder):
    """Return what a run found, without the time that it took."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rows = [
        {key: value for key, value in json.loads(line).items() if key != "wall_seconds"}
        for name in ("rounds.jsonl", "clients.jsonl")
        for line in (folder / name).read_text(encoding="utf-8").splitlines()
    ]
    return summary["model_sha256"], rows, (folder / "kernels.json").read_text(encoding="utf-8")


@pytest.mark.soak
def test_the_quickstart_on_machines_of_unlike_cores(tmp_path):
    folders = {name: tmp_path / name for name in MACHINES}
    processes = [begin(folders[name], *machine) for name, machine in MACHINES.items()]
    assert [process.wait() for process in processes] == [0, 0]
    first, other = (found(folder) for folder in folders.values())
    assert first[1][-1]["round"] == 1
    assert other == first


@pytest.mark.soak
def test_a_fleet_plans_for_the_devices_threads_not_for_the_simulator_s(threads):
    model = {"width": 1.0}
    # One thread's scratch memory fits in this budget, and that of eight does not.
    budget = Task(tiny_config(model=model)).planner().smallest().budget
    config = tiny_config(model=model, fleet={"mix": "rpi-4:1", "budgets": {"rpi-4": budget}})
    plans = []
    for count in (1, 8):
        threads(count)
        plans.append(Fleet.of(Task(config)).plans)
    assert plans[0] == plans[1]
    with pytest.raises(BudgetError):
        Task(config).plan(budget, "rpi-4", threads=8)


def test_more_threads_are_charged_more_scratch_memory():
    planner = Task(tiny_config(model={"width": 1.0})).planner()
    trace, shape = planner.trace, replace(planner.limits.shape, micro_batch=1)
    one, two, four = (
        footprint(trace, replace(planner.setting, threads=count), shape) for count in (1, 2, 4)
    )
    assert two.workspace > one.workspace
    assert four.workspace - two.workspace == 2 * (two.workspace - one.workspace)
    assert two.total - one.total == two.workspace - one.workspace
