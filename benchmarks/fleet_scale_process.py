"""One run of fleet_scale.py in a process of its own: prints a line of JSON after each round.

    echo '{"population": 1000000, "cohort": 100, "rounds": 3, "workers": 2}' \
        | python benchmarks/fleet_scale_process.py

A line is ``{"round", "at", "trained", "failed", "accuracy"}``, ``at`` in seconds of ``time.time``.
Round 0 is the evaluation before training.
"""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mest_fed.config import RunConfig, from_table
from mest_fed.simulation.simulate import open_run
from mest_fed.simulation.trackers.progress import Observers

KEYS = ("round", "trained", "failed", "accuracy")


class Printer(Observers):
    """Prints when rounds end."""

    def round_done(self, row: dict[str, Any]) -> None:
        """Print the line of a round."""
        print(json.dumps({"at": time.time(), **{key: row[key] for key in KEYS}}), flush=True)


def config_of(population: int, cohort: int, rounds: int) -> RunConfig:
    """Return the small CNN on digits, 36 examples a device to train on, in batches of 12."""
    table = {
        "run": {"rounds": rounds},
        "data": {"name": "digits", "partition": "sampled"},
        "model": {"name": "cnn2", "width": 0.5},
        "training": {"batch_size": 12, "device": "cpu"},
        "server": {"clients_per_round": cohort, "evaluate_clients_every": 0},
        "fleet": {"devices": population},
    }
    return from_table(table, "benchmarks/fleet_scale.py")


def main() -> None:
    case = json.load(sys.stdin)
    logging.disable(logging.WARNING)  # a line for each device that is away
    config = config_of(case["population"], case["cohort"], case["rounds"])
    with tempfile.TemporaryDirectory() as text:
        run = open_run("scale", config, Path(text) / "run", resume=False, observer=Printer())
        run.run(case["workers"])


if __name__ == "__main__":
    main()
