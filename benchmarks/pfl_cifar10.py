"""Ours against pfl-research on its own CIFAR-10 benchmark: seconds a round, or accuracy.

1,000 IID users of 50 images, cohorts of 50, one local epoch in batches of 10 at learning rate 0.1,
the two-layer network. Both sides get the same images and the same share of them for each user; each
draws its own cohorts. Nothing is evaluated while rounds are timed. pfl-research runs in processes
of its own, in the fastest of three ways (one process on 1 or 2 threads, or two that reduce); ours
on as many workers as there are cores, each method by compiled programs, or as ``--engine`` says.
Its dropout, which ours has not, is left out unless ``--dropout`` is given: it would cost it time.
The first round of each run is not counted. On a busy machine ``--cpu`` compares seconds of the CPU,
with one process and one thread on either side.

    python benchmarks/pfl_cifar10.py --data FOLDER --json pfl.json
    python benchmarks/pfl_cifar10.py --data FOLDER --engine compiled torch --json pfl.json
    python benchmarks/pfl_cifar10.py --data FOLDER --cpu --json cpu.json
    python benchmarks/pfl_cifar10.py --data FOLDER --accuracy --rounds 100 --json accuracy.json

All figures are measured. Needs the extra ``peers``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from command_line import Parser, collect, positive, run, show
from harness import Row, Timing, software, write_json
from pfl_cifar10_ours import METHODS, Watch, train

from mest_fed.catalogue import Engine
from mest_fed.errors import InputError, not_allowed

PEER = Path(__file__).with_name("pfl_cifar10_peer.py")
COLUMNS = {
    "case": "name",
    "ours": "ours",
    "pfl": "peer",
    "unit": "unit",
    "ratio": "ratio",
    "pfl runs as": "peer_runs_as",
}


@dataclass(frozen=True)
class Way:
    """How pfl-research runs: processes, and torch's threads in each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads} threads"


WAYS = (Way(1, 1), Way(1, 2), Way(2, 1))


def run_peer(way: Way, options: argparse.Namespace, rounds: int, *flags: str) -> dict:
    """Run pfl-research; return seconds of its rounds and accuracies."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(way.processes)]
    command = [
        sys.executable,
        *(launcher if way.processes > 1 else []),
        str(PEER),
        *("--data", str(options.data), "--users", str(options.users), "--seed", str(options.seed)),
        *("--rounds", str(rounds), "--threads", str(way.threads)),
        *(["--dropout"] if options.dropout else []),
        *(["--cpu"] if options.cpu else []),
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pfl-research failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def chosen(options: argparse.Namespace) -> list[str]:
    """Return our contestants: the methods by the engines that were asked for."""
    return [name for name, keys in METHODS.items() if keys["training.engine"] in options.engine]


def run_ours(
    method: str, options: argparse.Namespace, rounds: int, evaluate: bool = False
) -> Watch:
    """Run our side; return what watched it."""
    return train(
        method,
        options.data,
        rounds=rounds,
        users=options.users,
        seed=options.seed,
        workers=0 if options.cpu else options.workers,
        evaluate=evaluate,
    )


def fastest(options: argparse.Namespace) -> tuple[Way, dict[str, float]]:
    """Try each way for a few rounds; return the fastest, and the median seconds of all."""
    if options.cpu:
        return WAYS[0], {}
    tried = {
        way: statistics.median(run_peer(way, options, 5)["seconds"][1:])
        for way in WAYS
        if max(way.processes, way.threads) <= (os.cpu_count() or 1)
    }
    named = {str(way): round(seconds, 3) for way, seconds in tried.items()}
    return min(tried, key=lambda way: tried[way]), named


def speed_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Time all in turn; yield a row for each of our methods."""
    way, tried = fastest(options)
    seconds: dict[str, list[float]] = {name: [] for name in ("peer", *chosen(options))}
    for number in range(options.runs):
        for name in seconds if number % 2 == 0 else reversed(seconds):
            rounds = options.rounds + 1
            if name == "peer":
                found = run_peer(way, options, rounds)["seconds"]
            else:
                found = run_ours(name, options, rounds).seconds
            seconds[name] += found[1:]
    peer = Timing(tuple(seconds["peer"]))
    for name in chosen(options):
        ours = Timing(tuple(seconds[name]))
        yield {
            "name": name,
            "ours": round(ours.median, 3),
            "peer": round(peer.median, 3),
            "unit": f"{'CPU ' if options.cpu else ''}s a round, measured",
            "ratio": round(peer.median / ours.median, 3),
            "runs": options.runs,
            "rounds": options.rounds,
            "workers": 0 if options.cpu else options.workers,
            "ours_quartiles": [round(value, 3) for value in ours.quartiles],
            "peer_quartiles": [round(value, 3) for value in peer.quartiles],
            "peer_runs_as": str(way),
            "peer_ways": tried,
            "peer_dropout": options.dropout,
        }


def accuracy_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Train all to the end; yield a row of test accuracy for each of our methods."""
    flags = ("--evaluate-every", "10")
    peer = {
        int(key): value
        for key, value in run_peer(WAYS[1], options, options.rounds, *flags)["accuracy"].items()
    }
    for name in chosen(options):
        ours = run_ours(name, options, options.rounds, evaluate=True).accuracy
        last = max(peer)
        yield {
            "name": name,
            "ours": round(ours[last], 4),
            "peer": round(peer[last], 4),
            "unit": f"accuracy on the test set after {last} rounds, measured",
            "ratio": round(ours[last] / peer[last], 4),
            "runs": 1,
            "points": round(100 * (ours[last] - peer[last]), 2),
            "ours_by_round": {number: round(value, 4) for number, value in ours.items()},
            "peer_by_round": {number: round(value, 4) for number, value in peer.items()},
            "peer_dropout": options.dropout,
        }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__.splitlines()[0], {"rounds": 1, "runs": 1})
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's files")
    parser.add_argument("--rounds", type=positive, default=10, help="in a run")
    parser.add_argument("--runs", type=positive, default=3, help="of each contestant")
    parser.add_argument("--users", type=positive, default=1000)
    parser.add_argument("--seed", type=positive, default=1)
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1)
    parser.add_argument("--engine", nargs="+", choices=list(Engine), default=[Engine.COMPILED])
    parser.add_argument("--dropout", action="store_true", help="give pfl-research its dropout")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of one process and thread")
    parser.add_argument("--accuracy", action="store_true", help="accuracy instead of speed")
    options = parser.parse_args(arguments)
    if not (options.data / "train.parquet").is_file():
        raise not_allowed("--data", str(options.data), "a folder with train and test.parquet")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if find_spec("pfl") is None:
        raise InputError('pfl-research is not here; install it with: pip install "mest-fed[peers]"')
    rows = collect(accuracy_rows(options) if options.accuracy else speed_rows(options))
    show("pfl-research's CIFAR-10 benchmark, measured", rows, COLUMNS)
    if options.json:
        packages = software("pfl", "torch", "flwr", "ray", "numpy")
        write_json(options.json, rows, software=packages)


if __name__ == "__main__":
    run(main)
