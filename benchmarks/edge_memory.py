"""Memory of a node: lean, as ``mest-fed node`` runs it, and Flower's, as ``mest-fed client`` does.

A server and one node run on loopback. The node's own examples are in an ``.npz`` file, and so are
the server's data where the run has no data set that comes with scikit-learn.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen

import numpy as np
from edge_meter import Memory, Meter, look, typical
from node_process import ONE_DEVICE, free_port, is_open, own_data, running_node, started, wait_for

#: Sums of memory that rows are made of.
KEYS = ("pss", "alone")
#: Looks at a node that waits, and seconds between them.
LOOKS, LOOK_SECONDS = 5, 0.2
#: Seconds after which a node that was told the run has nothing left to do.
SETTLE_SECONDS = 3.0
#: Seconds that a run and what precedes it may take.
LONGEST = 900.0


@dataclass(frozen=True)
class Job:
    """What a node trains.

    Parameters
    ----------
    name : str
        In rows.
    settings : tuple of str
        ``section.key=value`` of the run, beside the quickstart's.
    budget : str
        What training may add, as the node is told.
    goal : float
        Megabytes that the whole process of a lean node shall stay within.
    examples : int
        Of the node.
    shape : tuple of int
        Of an image.
    from_file : bool
        Whether the server's data are a file of such images, instead of the run's data set.
    """

    name: str
    settings: tuple[str, ...]
    budget: str
    goal: float
    examples: int
    shape: tuple[int, ...] = (1, 8, 8)
    from_file: bool = False


#: The quickstart's network, at a budget that takes its batch whole, as Flower's node does.
QUICKSTART = Job(
    "quickstart's network",
    (
        "model.name='resnet8'",
        "model.width=2.0",
        "model.norm='group'",
        "sparsity.method='mest-ems'",
        "sparsity.scheme='block'",
        "sparsity.density=0.1",
        "training.batch_size=16",
        "training.local_epochs=2",
    ),
    "12MB",
    60.0,
    100,
)
#: MEST's network as mest-fed plan has it.
RESNET32 = Job(
    "ResNet-32, 90% sparse, batch 64",
    (
        "model.name='resnet32'",
        "model.width=2.0",
        "model.norm='group'",
        "sparsity.method='mest-ems'",
        "sparsity.scheme='block'",
        "sparsity.density=0.1",
        "training.batch_size=64",
        "training.local_epochs=1",
    ),
    "50MB",
    100.0,
    256,
    (3, 32, 32),
    from_file=True,
)
JOBS = (RESNET32, QUICKSTART)


@dataclass
class Lean:
    """A lean node that was told its run.

    Parameters
    ----------
    node, server : Popen
        Their processes.
    meter : Meter
        Watches the node from its start.
    """

    node: Popen[bytes]
    server: Popen[bytes]
    meter: Meter


@dataclass(frozen=True)
class Peak:
    """Largest sizes of a node's tree, in bytes, over all of its life.

    Parameters
    ----------
    pss, alone, high_water : int
        See :mod:`edge_meter`.
    after : Memory
        The node after the run, when the server is gone.
    seconds_between : float
        Between samples.
    """

    pss: int
    alone: int
    high_water: int
    after: Memory | None
    seconds_between: float


@contextmanager
def lean_node(folder: Path, job: Job, settings: Sequence[str], *, devices: int) -> Iterator[Lean]:
    """Start a server and a lean node in an empty folder; end both in the end.

    A run of more devices than one does not begin, so that the node waits.
    """
    place = place_of(folder, job)
    port = free_port()
    address = f"127.0.0.1:{port}"
    # A node registers before it says its budget, and is planned for by its profile's then.
    budget = f"fleet.budgets='rpi-4:{job.budget}'"
    least = (f"fleet.devices={devices}", f"server.min_nodes={devices}")
    given = (*job.settings, *ONE_DEVICE, *least, budget)
    if job.from_file:
        given = (*given, "data.name='npz'", f"data.path='{folder / 'run.npz'}'")
    server = ["mest-fed", "server", "--preset", "quickstart", "--insecure", "--listen", address]
    server += ["--out", str(folder / "run")]
    server += [part for it in (*given, *settings) for part in ("--set", it.replace("'", '"'))]
    node = ["mest-fed", "node", "--link", address, "--insecure", *place, "--device", "rpi-4"]
    node += ["--budget", job.budget, "--state", str(folder / "state"), "--name", "lean"]
    node += ["--give-up", "60"]
    environment = commands_environment()
    with started(server, folder, environment, "server") as serving:
        wait_for(lambda: is_open(port) or _ended(serving, folder / "server.log"))
        with (
            started(node, folder, environment, "node") as process,
            Meter(process.pid) as meter,
        ):
            log = folder / "node.log"
            wait_for(lambda: b"takes part" in log.read_bytes() or _ended(process, log))
            yield Lean(process, serving, meter)


def lean_idle(folder: Path, job: Job) -> Memory:
    """Return a lean node's memory while it waits for work."""
    with lean_node(folder, job, (), devices=2) as lean:
        time.sleep(SETTLE_SECONDS)
        return waiting(lean.node.pid)


def stock_idle(folder: Path, job: Job) -> Memory:
    """Return the memory of Flower's node, of its whole tree, while it waits for work."""
    with running_node(folder, own_data(folder, job.examples)) as node:
        return waiting(node.root.pid)


def lean_peak(folder: Path, job: Job, rounds: int) -> Peak:
    """Return the peak of a lean node that trains for some rounds."""
    with lean_node(folder, job, (f"run.rounds={rounds}",), devices=1) as lean:
        wait_for(lambda: lean.server.poll() is not None, LONGEST)
        if lean.server.returncode:
            raise SystemExit("error: the run failed\n" + _text(folder / "server.log"))
        time.sleep(LOOK_SECONDS)
        after = look(lean.node.pid)
        if after is None:
            raise SystemExit("error: the node ended\n" + _text(folder / "node.log"))
    return peak_of(lean.meter, after)


def stock_peak(folder: Path, job: Job, rounds: int) -> Peak:
    """Return the peak of Flower's node that trains for some rounds, of its whole tree."""
    with (
        running_node(folder, own_data(folder, job.examples)) as node,
        Meter(node.root.pid) as meter,
    ):
        node.run((*ONE_DEVICE, *job.settings, f"run.rounds={rounds}"), lambda: None)
    return peak_of(meter, None)


def peak_of(meter: Meter, after: Memory | None) -> Peak:
    """Return the largest sizes of a meter's samples."""
    most = {key: meter.most(key) for key in (*KEYS, "high_water")}
    return Peak(**most, after=after, seconds_between=meter.seconds_between)


def waiting(pid: int) -> Memory:
    """Return what a tree at rest takes: the median of some looks, by each sum.

    Raises
    ------
    SystemExit
        If it has ended.
    """
    found = []
    for _ in range(LOOKS):
        one = look(pid)
        if one is None:
            raise SystemExit("error: the node ended")
        found.append(one)
        time.sleep(LOOK_SECONDS)
    sums = {key: typical(found, key) for key in ("pss", "alone", "rss", "high_water")}
    return replace(found[-1], **sums)


def place_of(folder: Path, job: Job) -> list[str]:
    """Write the examples of a job; return the node's options that name its own."""
    if not job.from_file:
        return own_data(folder, job.examples)
    images, labels = random_images(job.examples, job.shape)
    np.savez(folder / "own.npz", images=images, labels=labels)
    tests, answers = random_images(64, job.shape, seed=1)
    parts = {"x_train": images, "y_train": labels, "x_test": tests, "y_test": answers}
    np.savez(folder / "run.npz", **parts)
    return ["--data", str(folder / "own.npz")]


def random_images(count: int, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return images of bytes drawn at random, and their labels in ten classes."""
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.arange(count, dtype=np.int64) % 10


def commands_environment() -> dict[str, str]:
    """Return the environment of mest-fed's commands: those of this Python come first."""
    scripts = Path(sys.executable).parent
    return os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}


def _ended(process: Popen[bytes], log: Path) -> bool:
    """Raise if a process has ended before its time."""
    if process.poll() is not None:
        raise SystemExit(f"error: {log.stem} ended\n" + _text(log))
    return False


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")
