"""Processor time that a message takes in Flower's node, as ``mest-fed client`` runs it.

    python benchmarks/node_messages.py [--json FILE]

A fresh node on loopback takes a run of one round, another one a run of six. A round is one message
to train; clients evaluate nothing, and each run begins with one message to plan. So the difference,
divided by five, is a message. All seconds are measured: user's and system's, of the node's whole
tree of processes (supervisor, SuperNode, SuperExec, ClientApp and its child), whether they have
ended or not. Waiting for a core is not in them, but other work slows them all the same, by caches
and threads of a core that it shares. ``load_before`` and ``load_after`` say how much there was,
``core_speed`` how fast a core was for a small step, as a multiple of the reference machine's.

In a message is: the start of the ClientApp's process and its imports (Flower, NumPy, torch), the
app's bundle, the child that trains, the exchange with the SuperNode, and what the node does anyway
while a round lasts, such as its questions for messages. Of training there is next to nothing: two
steps of a small perceptron and, as in each process, their programs. It is the node's part alone:
SuperLink and server are not in it. Profiles of devices have it as ``message_seconds``, at their
``core_speed``.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from command_line import Parser, positive, run
from harness import Row, machine, software, write_json
from node_process import ONE_DEVICE, Node, own_data, running_node
from virtual_time import core_speed

EXAMPLES = 20
SETTINGS = (*ONE_DEVICE, "model.name='mlp'", "training.batch_size=10", "training.local_epochs=1")
#: Rounds of the runs that are compared.
FEW, MANY = 1, 6
#: Timings of a small step.
SPEED_TIMINGS = 7


def tree_seconds(root: psutil.Process) -> float:
    """Return the processor time of a tree of processes, of those that have ended as well.

    What has ended is counted by the process that waited for it, or by itself until one does. The
    tree is at rest: a process that ends while others are read would be missed or counted twice.
    """
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


class LiveTime:
    """Processor time of the processes of a tree, each as it was last seen: a lower bound."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._seconds: dict[psutil.Process, float] = {}

    def look(self) -> None:
        """Look at all that there are now."""
        for process in (self._root, *self._root.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._seconds[process] = times.user + times.system

    @property
    def total(self) -> float:
        """Seconds of all that were seen."""
        return sum(self._seconds.values())


def seconds_of_run(node: Node, rounds: int) -> tuple[float, float]:
    """Return the processor and wall-clock seconds that a run takes a node that is idle.

    Raises
    ------
    SystemExit
        If more was seen of single processes than the tree took: one ended that nobody waited for.
    """
    seen = LiveTime(node.root)
    seen.look()
    begin, before, start = tree_seconds(node.root), seen.total, time.monotonic()
    node.run([f"run.rounds={rounds}", *SETTINGS], seen.look)
    node.wait_until_idle()
    took, wall = tree_seconds(node.root) - begin, time.monotonic() - start
    if seen.total - before > took:
        lost = seen.total - before - took
        raise SystemExit(f"error: {lost:.2f} s of a process that has ended are not counted")
    return took, wall


def measure(repeats: int, many: int) -> Iterator[Row]:
    """Yield a row for each repetition."""
    for number in range(repeats):
        taken = {}
        load, speed = os.getloadavg()[0], core_speed(SPEED_TIMINGS)
        for rounds in (FEW, many) if number % 2 == 0 else (many, FEW):
            with tempfile.TemporaryDirectory() as text:
                folder = Path(text)
                with running_node(folder, own_data(folder, EXAMPLES)) as node:
                    taken[rounds] = seconds_of_run(node, rounds)
        (few, few_wall), (most, most_wall) = taken[FEW], taken[many]
        yield {
            "name": f"repetition {number + 1}",
            "message_seconds": round((most - few) / (many - FEW), 3),
            "message_wall_seconds": round((most_wall - few_wall) / (many - FEW), 3),
            "processor_seconds": {FEW: round(few, 2), many: round(most, 2)},
            "core_speed": round(speed, 2),
            "load_before": round(load, 2),
            "load_after": round(os.getloadavg()[0], 2),
        }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__.splitlines()[0], {"repeats": 1, "rounds": 2})
    parser.add_argument("--repeats", type=positive, default=3, help="pairs of runs")
    parser.add_argument("--rounds", type=more_rounds, default=MANY, help="of the longer run")
    return parser.parse_args(arguments)


def more_rounds(text: str) -> int:
    """Parse how many rounds the longer run has."""
    rounds = positive(text)
    if rounds <= FEW:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: more than {FEW}")
    return rounds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write a file."""
    options = parse(arguments)
    rows = []
    for row in measure(options.repeats, options.rounds):
        rows.append(row)
        wall, load = row["message_wall_seconds"], row["load_after"]
        print(
            f"{row['name']}: a message takes {row['message_seconds']} s of processor time,"
            f" {wall} s by the clock; load {load}, core speed {row['core_speed']}",
            flush=True,
        )
    seconds = sorted(row["message_seconds"] for row in rows)
    median = round(statistics.median(seconds), 3)
    print(f"{machine()}: median {median} s, {seconds[0]} to {seconds[-1]} s (measured)")
    if options.json:
        whole = {"median": median, "least": seconds[0], "most": seconds[-1], "unit": "s"}
        versions = software("torch", "flwr", "numpy")
        write_json(options.json, rows, software=versions, message_seconds=whole)


if __name__ == "__main__":
    run(main)
