"""Our side of ``pfl_cifar10.py``: a simulated run of its users, through wire, grid and strategy."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from mest_fed.config import RunConfig, from_flat
from mest_fed.kernels import torch_threads
from mest_fed.run_rows.row import Row
from mest_fed.simulation.simulate import open_run

#: What is measured against: plain SGD, every image once, no device that could be short of memory.
COMMON = {
    "data.name": "cifar10",
    "data.partition": "iid",
    "data.hold_out": 0.0,
    "model.name": "cnn2",
    "training.local_epochs": 1,
    "training.batch_size": 10,
    "training.learning_rate": 0.1,
    "training.schedule": "constant",
    "training.momentum": 0.0,
    "training.weight_decay": 0.0,
    "server.clients_per_round": 50,
    "server.min_nodes": 50,
    "server.evaluate_clients_every": 0,
}
_SPARSE = {
    "sparsity.method": "mest-ems",
    "sparsity.scheme": "block:4",
    "sparsity.density": 0.1,
    "training.learning_rate": 0.2,  # after 40 rounds ahead of 0.1, level with 0.3
}
#: Contestant -> its keys: a method, and what computes its steps.
METHODS = {
    f"{name}, {engine}": {**keys, "training.engine": engine}
    for name, keys in {
        "dense": {"sparsity.method": "dense"},
        "MEST-EM&S, 90% sparse": _SPARSE,
    }.items()
    for engine in ("torch", "compiled")
}


@dataclass
class Watch:
    """Observes a run and times its rounds: from the end of one to the end of the next."""

    clock: Callable[[], float] = time.perf_counter
    seconds: list[float] = field(default_factory=list)
    accuracy: dict[int, float] = field(default_factory=dict)
    _last: float = 0.0

    def begin(self, config: RunConfig, name: str, done: Sequence[Row]) -> None:
        """Nothing to show."""

    def round_done(self, row: Row) -> None:
        """Note a round; round 0 is the evaluation before training, and starts the clock."""
        now = self.clock()
        if row["round"] != 0:
            assert row["failed"] + row["rejected"] == 0, row
            self.seconds.append(now - self._last)
        if row["accuracy"] is not None:
            self.accuracy[row["round"]] = row["accuracy"]
        self._last = self.clock()

    def end(self) -> None:
        """Nothing to end."""


def always_there(folder: Path) -> Path:
    """Write the profile of a laptop that is never away: pfl-research's users never are."""
    text = (files("mest_fed.devices") / "profiles" / "laptop.toml").read_text(encoding="utf-8")
    path = folder / "always-there.toml"
    path.write_text(re.sub(r"(?m)^availability = [0-9.]+$", "availability = 1.0", text))
    return path


def train(
    method: str, data: Path, *, rounds: int, users: int, seed: int, workers: int, evaluate: bool
) -> Watch:
    """Run a method; with ``evaluate`` on the test set every 10 rounds, else never.

    Without workers seconds are those of the CPU: there is one process with one thread.
    """
    flat = COMMON | METHODS[method]
    flat |= {
        "data.path": str(data),
        "run.seed": seed,
        "run.rounds": rounds,
        "run.checkpoint_every": rounds,
        "fleet.devices": users,
        "server.central_evaluation": evaluate,
        "server.evaluate_every": 10,
    }
    logging.getLogger("flwr").setLevel(logging.ERROR)
    watch = Watch(time.perf_counter if workers else time.process_time)
    own = nullcontext() if workers else torch_threads(1)  # the server's, too
    with TemporaryDirectory() as folder, own:
        flat["fleet.mix"] = f"{always_there(Path(folder))}:{users}"
        out = Path(folder) / "run"
        open_run("pfl", from_flat(flat), out, resume=False, observer=watch).run(workers)
    return watch
