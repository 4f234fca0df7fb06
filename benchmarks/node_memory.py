"""What Flower's node takes on this machine, as ``mest-fed client`` runs it: idle, and as it trains.

    python benchmarks/node_memory.py [--json FILE]

A SuperLink and one node run on loopback, and the node's tree of processes is sampled: its
supervisor, SuperNode, SuperExec, the ClientApp, and its child that works on a message. Two runs:
with a partition of the digits of scikit-learn, and with an ``.npz`` file of the node's own. All
bytes are measured, for one machine: libraries differ by processor and version.

``together`` counts anonymous memory once however many processes share it (by proportional set
sizes), and libraries as often as the process that maps most of them does: what the tree takes on a
machine of its own. ``pss`` is less where programs beside the node map the same libraries; ``rss``
counts a shared page in each. ``planning`` is the child that answers the first message, ``training``
the one that trains, with what training adds. ``imports`` is what mest-fed client measures before it
starts the node (:mod:`mest_fed.cli.baseline`).
"""

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import psutil
from node_process import ONE_DEVICE, own_data, running_node, tree

from mest_fed.cli.baseline import measure_baseline
from mest_fed.cli.environment import node_environment
from mest_fed.system.proc import read_shares

#: The quickstart's model, batch and method for one device.
SETTINGS = (
    *ONE_DEVICE,
    "run.rounds=1",
    "training.local_epochs=20",
    "model.name='resnet8'",
    "training.batch_size=16",
)
IN_USE = re.compile(r"([\d.]+) MB in use before training")
PHASES = ("idle", "planning", "training", "idle after the run")
SUMS = ("together", "anonymous", "pss", "rss")
Sizes = dict[str, int]


@dataclass(frozen=True)
class Sample:
    """The tree at one moment.

    Parameters
    ----------
    roles : dict of str to dict of str to int
        Whose process -> ``rss``, ``pss``, ``anonymous`` (proportional) and ``files`` (resident).
    trainer : int or None
        Id of the process that works on a message.
    """

    roles: dict[str, Sizes]
    trainer: int | None

    def of_all(self, key: str) -> int:
        """Return the sum over the processes."""
        return sum(sizes[key] for sizes in self.roles.values())

    @property
    def together(self) -> int:
        """Bytes of the tree on a machine of its own: libraries as often as their largest user."""
        files = max((sizes["files"] for sizes in self.roles.values()), default=0)
        return self.of_all("anonymous") + files


def sample(root: psutil.Process) -> Sample:
    """Look at the tree once."""
    roles: dict[str, Sizes] = {}
    trainer = None
    for process, role in tree(root):
        shares = read_shares(process.pid)
        if not shares:
            continue
        trainer = process.pid if role == "trainer" else trainer
        roles[role] = {
            "rss": shares["Rss"],
            "pss": shares["Pss"],
            "anonymous": shares["Pss_Anon"] + shares["Pss_Shmem"],
            "files": shares["Rss"] - shares["Anonymous"],
        }
    return Sample(roles, trainer)


def run_node(folder: Path, place: Sequence[str]) -> dict[str, Any]:
    """Run a node for a round; return the sizes of its tree in each phase."""
    samples: list[Sample] = []
    with running_node(folder, place) as node:
        idle = [sample(node.root) for _ in range(5)]
        node.run(SETTINGS, lambda: samples.append(sample(node.root)))
        time.sleep(5)
        after = [sample(node.root) for _ in range(5)]
    workers = list(dict.fromkeys(each.trainer for each in samples if each.trainer is not None))
    (summary,) = folder.glob("runs/*/summary.json")
    (tier,) = json.loads(summary.read_text("utf-8"))["tiers"]
    log = (folder / "node.log").read_text(encoding="utf-8")
    held = re.search(r"held by ([^:]+):", log)
    found = IN_USE.search(log)
    return {
        "idle": middle(idle),
        "planning": largest(each for each in samples if each.trainer == workers[0]),
        "training": largest(each for each in samples if each.trainer in workers[1:]),
        "idle after the run": middle(after),
        "predicted_peak_of_training": tier["predicted_peak_bytes"],
        "in_use_before_training": None if found is None else round(float(found[1]) * 1e6),
        "in_use_counted_by": None if held is None else held[1],
    }


def middle(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the sample of the median size."""
    middle = statistics.median_low([each.together for each in samples])
    return as_row(next(each for each in samples if each.together == middle))


def largest(samples: Iterable[Sample]) -> dict[str, Any]:
    """Return the largest sample."""
    return as_row(max(samples, key=lambda each: each.together))


def as_row(one: Sample) -> dict[str, Any]:
    """Return a sample as plain values."""
    sums = {key: one.of_all(key) for key in ("rss", "pss", "anonymous")}
    return {"together": one.together, **sums, "roles": one.roles}


def main() -> None:
    """Measure, print, and write a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases: dict[str, Any] = {}
    for name in ("digits", "own"):
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            place = ["--partition", "0"]
            if name == "own":
                place = own_data(folder, 100)
            cases[name] = run_node(folder, place)
            for phase in PHASES:
                row = cases[name][phase]
                sizes = (f"{key} {row[key] / 1e6:.0f} MB" for key in SUMS)
                print(f"{name}, {phase}: {', '.join(sizes)}", flush=True)
    baseline = measure_baseline(node_environment())
    print(f"imports: {baseline.in_words()}")
    if options.json is not None:
        result = {
            "machine": harness.machine(),
            "software": harness.software("torch", "flwr", "numpy"),
            "cases": cases,
            "imports": {"together": baseline.together, **asdict(baseline)},
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
