"""A model from a user's file against the same model by name: the same bits, the same seconds.

A fleet trains one configuration by turns: ``model.name`` is a model's name, or the reference of a
function in a file that builds it. Seconds are processor time of one process on one thread, which
other work on the machine hardly changes: until the run may start (the model is built, tried and
planned), and of the run.

    python benchmarks/own_model.py --json own-model.json
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from command_line import Parser, collect, positive, run, show
from harness import Row, compare, in_turn, software, write_json

from mest_fed.config import from_table
from mest_fed.errors import InputError
from mest_fed.kernels import torch_threads
from mest_fed.server.run_folder import SUMMARY
from mest_fed.simulation.simulate import open_run
from mest_fed.strict_json import read_json

MODELS = ("resnet8",)
FILE = """from mest_fed.nn.models import resnet


def build(input_shape, num_classes, width=1.0, norm="batch"):
    return resnet.{name}(input_shape, num_classes, width=width, norm=norm)
"""
COLUMNS = {
    "model": "name",
    "by file, ms": "ours",
    "by name, ms": "peer",
    "times": "ratio",
    "times, median of pairs": "pairs_median",
    "pairs": "pairs_ratios",
    "same bits": "same_bits",
}


def train(name: str, rounds: int, folder: Path) -> tuple[str, Mapping[str, float]]:
    """Run; return the digest of the final weights, and the seconds of its parts."""
    table = {
        "run": {"rounds": rounds, "checkpoint_every": 10**6},
        "data": {"name": "digits", "partition": "iid"},
        "model": {"name": name, "norm": "group"},
        "sparsity": {"density": 0.1},
        "training": {"batch_size": 16, "device": "cpu"},
        "server": {"clients_per_round": 5, "evaluate_clients_every": 0},
        "fleet": {"devices": 10, "mix": "laptop:1"},
    }
    start = time.process_time()
    opened = open_run("own-model", from_table(table, "benchmarks/own_model.py"), folder)
    begun = time.process_time()
    path = opened.run(0)
    seconds = {"start": begun - start, "run": time.process_time() - begun}
    return read_json(path / SUMMARY, dict)["model_sha256"], seconds


class Side:
    """One way to name the model: runs it, and keeps the digests of the final weights.

    Parameters
    ----------
    name : str
        What ``model.name`` says.
    rounds : int
        Of a run.
    folder : Path
        For the run folders.
    """

    def __init__(self, name: str, rounds: int, folder: Path) -> None:
        self.name, self.rounds, self.folder = name, rounds, folder
        self.digests: list[str] = []

    def __call__(self) -> Mapping[str, float]:
        """Run; return the seconds of its parts."""
        folder = self.folder / str(len(self.digests))
        digest, seconds = train(self.name, self.rounds, folder)
        self.digests.append(digest)
        return seconds

    @property
    def digest(self) -> str:
        """That of all runs; InputError if they differ."""
        first, *others = dict.fromkeys(self.digests)
        if others:
            raise InputError(f"{self.name}: runs of one seed end in other weights: {self.digests}")
        return first


def rows(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yield a row for each model."""
    for model in options.models:
        file = folder / f"my_{model}.py"
        file.write_text(FILE.format(name=model), encoding="utf-8")
        ours = Side(f"{file}:build", options.rounds, folder / f"{model}-by-file")
        peer = Side(model, options.rounds, folder / f"{model}-by-name")
        timings = in_turn({"ours": ours, "peer": peer}, options.pairs, warm_up=1)
        pairs = zip(timings["peer"]["total"].runs, timings["ours"]["total"].runs, strict=True)
        ratios = sorted(round(by_name / by_file, 3) for by_name, by_file in pairs)
        digests = {"ours_sha256": ours.digest, "peer_sha256": peer.digest}
        same = str(ours.digest == peer.digest)
        facts = {"peer_name": "by name", "clock": "processor time", "same_bits": same, **digests}
        spread = {"pairs_ratios": ratios, "pairs_median": statistics.median(ratios)}
        yield compare(model, timings["ours"], timings["peer"], **facts, **spread)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__.splitlines()[0], {"pairs": 1, "rounds": 1})
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--pairs", type=positive, default=5, help="runs of each way")
    parser.add_argument("--rounds", type=positive, default=20, help="of a run")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    for name in ("flwr", "mest_fed.server"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as text, torch_threads(1):
        done = collect(rows(options, Path(text)))
    show("A model by file and by name (measured)", done, COLUMNS)
    for row in done:
        print(f"{row['name']}: {row['ours_sha256']} by file, {row['peer_sha256']} by name")
    if options.json:
        facts = {"rounds": options.rounds, "threads": 1, "torch": torch.__version__}
        write_json(options.json, done, software=software("numpy", "flwr"), **facts)


if __name__ == "__main__":
    run(main)
