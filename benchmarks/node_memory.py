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
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil

from mest_fed.cli.baseline import measure_baseline
from mest_fed.cli.environment import node_environment
from mest_fed.system.proc import read_shares

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent
CONNECTION = """
[superlink]
default = "loopback"

[superlink.loopback]
address = "127.0.0.1:{port}"
insecure = true
"""
#: The quickstart's model, batch and method for one device and two rounds.
SETTINGS = (
    "run.rounds=1",
    "fleet.devices=1",
    "fleet.mix='rpi-4:1'",
    "server.min_nodes=1",
    "server.clients_per_round=1",
    "server.evaluate_clients_every=0",
    "training.local_epochs=20",
    "model.name='resnet8'",
    "training.batch_size=16",
)
#: Parts of a command line -> whose process it is; the first that is found.
ROLES = {"supervise": "supervisor", "superexec": "superexec", "clientapp": "clientapp"}
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
    for process in (root, *root.children(recursive=True)):
        try:
            role = role_of(process.cmdline(), process.parent())
        except psutil.NoSuchProcess:
            continue  # it has ended meanwhile
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


def role_of(command: Sequence[str], parent: psutil.Process | None) -> str:
    """Return whose process it is; a ClientApp's child trains."""
    # Options hold other names: a SuperNode is told of its supervisor, a ClientApp of its SuperNode.
    text = " ".join(command[:3])
    role = next((name for part, name in ROLES.items() if part in text), "supernode")
    if role == "clientapp" and parent is not None and "clientapp" in " ".join(parent.cmdline()[:3]):
        return "trainer"
    return role


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def started(
    command: Sequence[str], folder: Path, environment: dict[str, str], name: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the background; end it in the end."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(test: Any, seconds: float = 300.0) -> None:
    """Wait until a test holds."""
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            raise SystemExit("error: the node or its SuperLink did not start")
        time.sleep(0.1)


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def copy_app(folder: Path) -> Path:
    """Copy what the app's bundle is built from."""
    folder.mkdir()
    for name in ("clients", "server"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_node(folder: Path, place: Sequence[str]) -> dict[str, Any]:
    """Run a node for two rounds; return the sizes of its tree in each phase."""
    ours = {
        "FLWR_HOME": str(folder),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_WAIT_POLICY": "passive",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
    }
    environment = os.environ | ours
    port = free_port()
    (folder / "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    node = ["mest-fed", "client", "--superlink", f"127.0.0.1:{port}", "--insecure", *place]
    node += ["--device", "rpi-4", "--memory-limit", "2GB"]
    app = ["flwr", "run", str(copy_app(folder / "app")), "loopback", "--stream"]
    app += ["--run-config", " ".join(SETTINGS)]
    with started(link, folder, environment, "superlink"):
        wait_for(lambda: is_open(port))
        with started(node, folder, environment, "node") as process:
            root = psutil.Process(process.pid)
            wait_for(lambda: "superexec" in sample(root).roles)
            time.sleep(8)
            idle = [sample(root) for _ in range(5)]
            samples: list[Sample] = []
            with started(app, folder, environment, "run") as run:
                while run.poll() is None:
                    samples.append(sample(root))
                    time.sleep(0.3)
            if run.returncode:
                raise SystemExit(
                    "error: the run failed\n" + (folder / "run.log").read_text("utf-8")
                )
            time.sleep(5)
            after = [sample(root) for _ in range(5)]
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
                images = np.random.default_rng(0).integers(0, 256, (100, 1, 8, 8), dtype=np.uint8)
                np.savez(folder / "own.npz", images=images, labels=np.arange(100) % 10)
                place = ["--data", str(folder / "own.npz")]
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
