"""Tiny simulated runs for the tests of the simulation as a whole."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from mest_fed.config import from_table, read_toml
from mest_fed.kernels import torch_threads
from mest_fed.memory import footprint
from mest_fed.memory.planner import ends, needed
from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.simulation.simulate import open_run
from mest_fed.simulation.trackers.progress import Observers
from mest_fed.task import Task

TINY = {
    "run": {"rounds": 3, "seed": 5, "checkpoint_every": 100},
    "model": {"width": 0.25},
    "sparsity": {"density": 0.2},
    "training": {"batch_size": 32, "device": "cpu"},
    "server": {
        "clients_per_round": 3,
        "evaluate_every": 2,
        "evaluate_clients_every": 2,
        "evaluate_clients": 3,
    },
    "fleet": {"devices": 12, "mix": "rpi-4:1"},
}


def tiny_table(**sections):
    """Return the tables of a tiny configuration, with changes."""
    table = {section: dict(keys) for section, keys in TINY.items()}
    for section, keys in sections.items():
        table[section] = table.get(section, {}) | keys
    return table


def tiny_config(**sections):
    return from_table(tiny_table(**sections), "test")


def budget_for(density, **sections):
    """Return the smallest budget within which a plan keeps a density."""
    planner = Task(tiny_config(**sections)).planner()
    shape = replace(planner.limits.shape, density=density)
    kept = ("density", "momentum", "frozen")
    knobs = [knob for knob in planner.limits.knobs() if knob.name not in kept]
    totals = [footprint(planner.trace, planner.setting, end).total for end in ends(shape, knobs)]
    return needed(min(totals))


class Recorder(Observers):
    """Keeps the rows that it is shown."""

    def __init__(self):
        super().__init__()
        self.begun, self.rounds, self.ended = None, [], 0

    def begin(self, config, name, done):
        self.begun = (config.run.rounds, done[-1]["round"] if done else 0)

    def round_done(self, row):
        self.rounds.append(row["round"])

    def end(self):
        self.ended += 1


class StopAfter(Recorder):
    """Raises after a round, by default as Ctrl-C does."""

    def __init__(self, number, error=KeyboardInterrupt):
        super().__init__()
        self.number, self.error = number, error

    def round_done(self, row):
        super().round_done(row)
        if row["round"] == self.number:
            raise self.error


def start(folder, config=None, *, resume=False, display=None):
    """Run, or go on with, a simulation in this process; memory is not measured."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("server").setLevel(logging.ERROR)
    shown = Observers() if display is None else display
    unmeasured = patch.object(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    with torch_threads(1), unmeasured:  # the work is too small for two
        return open_run("tiny", config, Path(folder), resume=resume, observer=shown).run(0)


def read_rows(folder, name, leave_out=()):
    """Return the rows of a ``.jsonl`` file without some keys."""
    lines = (Path(folder) / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{key: value for key, value in row.items() if key not in leave_out} for row in rows]


def read_summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))


def assert_same_run(folder, other):
    """Compare all that two runs found, but for the time that they took."""
    assert read_rows(folder, "clients") == read_rows(other, "clients")
    wall = ("wall_seconds",)
    assert read_rows(folder, "rounds", wall) == read_rows(other, "rounds", wall)
    one, two = read_summary(folder), read_summary(other)
    assert one.pop("wall_seconds") > 0
    assert two.pop("wall_seconds") > 0
    assert one == two


def assert_same_on_workers(serial, workers, folder):
    """Run what a folder holds on workers; its clients' rows and its model must be the same."""
    config = from_table(read_toml(serial / "config.toml"), "test")
    with patch.object(PeakMeasurement, "start", lambda *_: PeakMeasurement(None)):
        open_run("tiny", config, folder, resume=False).run(workers)
    assert read_rows(folder, "clients") == read_rows(serial, "clients")
    assert read_summary(folder)["model_sha256"] == read_summary(serial)["model_sha256"]
