"""Virtual time to accuracy: synchronous rounds against FedBuff where some devices are stragglers.

Forty devices train a small ResNet on digits with MEST; about three of ten compute and send slower
by a factor. All modes but over-selection have as many devices at work. All take about as many
updates, small buffers in more steps. Accuracy is measured, time is modelled. A row is a mode at a
target: medians over seeds of the virtual seconds until the test accuracy first reached it, and how
many times sooner than synchronous rounds that is.

    python benchmarks/asynchrony.py --json asynchrony.json --picture asynchrony.svg
"""

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from command_line import Parser, collect, positive, run, show
from harness import Row, software, write_json

from mest_fed.config import RunConfig, from_table
from mest_fed.errors import not_allowed
from mest_fed.simulation.simulate import open_run

COHORT, DEVICES, SHARE = 10, 40, 0.3
MIX = {"rpi-zero-2w": 4, "rpi-3b-plus": 3, "rpi-4": 3, "rpi-5": 2, "jetson-nano": 2}
MIX |= {"phone-low": 2, "phone-mid": 2, "phone-high": 2}
PERIOD = 45.0
SYNC = "synchronous"
TARGETS = (0.7, 0.8)
#: Server section of each mode, and updates that a round takes, or is expected to.
MODES: dict[str, tuple[dict[str, Any], int]] = {
    SYNC: ({"clients_per_round": COHORT}, COHORT),
    "over-selection 1.3": ({"clients_per_round": COHORT, "over_selection": 1.3}, COHORT),
    "FedBuff, buffer 5": ({"mode": "buffered", "concurrency": COHORT, "buffer": 5}, 5),
    "FedBuff, buffer 10": ({"mode": "buffered", "concurrency": COHORT, "buffer": 10}, 10),
    "semi-synchronous": ({"mode": "semi-sync", "concurrency": COHORT, "period": PERIOD}, 5),
}
COLUMNS = {
    "mode and target": "name",
    "virtual s": "ours",
    "synchronous": "peer",
    "times": "ratio",
    "reached in": "reached",
    "final accuracy": "final_accuracy",
}
#: Virtual seconds, test accuracy and updates so far, after each round.
Curve = list[tuple[float, float, int]]


def config_of(mode: str, seed: int, updates: int, factor: float) -> RunConfig:
    """Return the configuration of one run."""
    section, each = MODES[mode]
    table = {
        "run": {"seed": seed, "rounds": -(-updates // each), "checkpoint_every": 10**6},
        "data": {"name": "digits", "alpha": 0.5},
        "model": {"width": 0.5},
        "sparsity": {"density": 0.1},
        "training": {"local_epochs": 2, "batch_size": 16, "device": "cpu"},
        "server": {"evaluate_clients_every": 0, **section},
        "fleet": {"devices": DEVICES, "mix": MIX},
        "behaviour": {"stragglers": SHARE, "straggler_factor": factor},
    }
    return from_table(table, "benchmarks/asynchrony.py")


def curve_of(config: RunConfig, workers: int, folder: Path) -> Curve:
    """Run; return its curve."""
    run = open_run("asynchrony", config, folder, resume=False)
    path = run.run(workers)
    rows = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    updates = accumulate(row["trained"] for row in rows)
    return [
        (row["virtual_seconds"], row["accuracy"], taken)
        for row, taken in zip(rows, updates, strict=True)
    ]


def seconds_to(curve: Curve, target: float) -> float | None:
    """Return when training first brought the accuracy to a target; None if it never did."""
    reached = (seconds for seconds, accuracy, taken in curve if taken and accuracy >= target)
    return next(reached, None)


def rows_of(curves: Mapping[str, list[Curve]]) -> Iterator[Row]:
    """Yield a row for each mode and target that every seed of both reached."""
    for target in TARGETS:
        for mode, mine in curves.items():
            ours = [seconds_to(curve, target) for curve in mine]
            peer = [seconds_to(curve, target) for curve in curves[SYNC]]
            reached = [s for s in ours if s is not None]
            theirs = [s for s in peer if s is not None]
            if not reached or not theirs:
                continue
            yield {
                "name": f"{mode}, accuracy {target:g}",
                "ours": round(statistics.median(reached), 4),
                "peer": round(statistics.median(theirs), 4),
                "peer_name": SYNC,
                "unit": "virtual seconds (modelled) to test accuracy (measured), median over seeds",
                "ratio": round(statistics.median(theirs) / statistics.median(reached), 3),
                "runs": len(mine),
                "reached": f"{len(reached)} of {len(mine)}",
                "ours_runs": ours,
                "peer_runs": peer,
                "final_accuracy": round(statistics.median(c[-1][1] for c in mine), 4),
                "final_accuracy_runs": [curve[-1][1] for curve in mine],
                "virtual_seconds_runs": [curve[-1][0] for curve in mine],
                "updates_runs": [curve[-1][2] for curve in mine],
            }


def draw(curves: Mapping[str, list[Curve]], path: Path) -> None:
    """Draw accuracy over virtual time, a line for each seed."""
    from matplotlib.figure import Figure

    from mest_fed.simulation.report.figures.style import (
        BLUE,
        GREEN,
        MUTED,
        ORANGE,
        VERMILION,
        house_style,
    )

    colours = dict(zip(MODES, (MUTED, ORANGE, BLUE, GREEN, VERMILION), strict=True))
    with house_style():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for mode, lines in curves.items():
            for number, curve in enumerate(lines):
                label = mode if number == 0 else None
                seconds, accuracies, _ = zip(*curve, strict=True)
                axes.plot(seconds, accuracies, color=colours[mode], lw=1, label=label)
        axes.set(xlabel="virtual seconds (modelled)", ylabel="test accuracy (measured)")
        axes.legend(loc="lower right")
        figure.savefig(path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__.splitlines()[0], {"updates": 20, "seeds": 1})
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--updates", type=positive, default=160, help="that each run takes")
    parser.add_argument("--factor", type=positive, default=5, help="how many times slower")
    parser.add_argument("--workers", type=int, default=0, help="worker processes")
    parser.add_argument("--picture", type=Path, help="file to draw the curves to")
    options = parser.parse_args(arguments)
    if options.workers < 0:
        raise not_allowed("--workers", options.workers, "a whole number from 0")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("server").setLevel(logging.ERROR)
    curves: dict[str, list[Curve]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for seed in range(1, options.seeds + 1):
            for mode, lines in curves.items():
                config = config_of(mode, seed, options.updates, float(options.factor))
                lines.append(curve_of(config, options.workers, folder / f"{len(lines)}-{mode}"))
    done = collect(rows_of(curves))
    show("Virtual time (modelled) to accuracy (measured)", done, COLUMNS)
    if options.json:
        facts = {"devices": DEVICES, "stragglers": SHARE, "factor": options.factor}
        facts |= {"updates": options.updates, "period": PERIOD}
        write_json(options.json, done, software=software("torch", "numpy", "flwr"), **facts)
    if options.picture:
        draw(curves, options.picture)


if __name__ == "__main__":
    run(main)
