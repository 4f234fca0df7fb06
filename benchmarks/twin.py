"""A device's twin: rounds and peak memory that its profile predicts, against measured ones.

    python benchmarks/twin.py --json twin.json

The device is a lean node (``mest-fed node``) on this machine, held to one core. ``mest-fed
calibrate`` measures that core, with nothing beside it, and the link over loopback, before each case
and after the last one; all profiles are kept in the JSON. In between a server on the other cores
has the node train some rounds of a case, and ``mest-fed calibrate --compare`` sets the rows beside
what the mean of the two profiles around it predicts, so that a machine whose speed drifts is no
fault of the model. In a row ``ours`` is predicted (modelled), ``peer`` is measured, and ``ratio``
is predicted over measured. Rounds are medians over all but the first, in which programs are fetched
and made; the peak is the largest that training added in any round. Calibration by one thread counts
processor time, a round does not: where others work on the machine, the row of the node's processor
time (a mean, all of its threads) says what the profile is worth. ``drift`` is how much longer steps
took after the last case than before the first.

Goals: rounds within 20%, peaks within 5%.
"""

import argparse
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
from command_line import Parser, collect, positive, run, show
from harness import Row, software, write_json

from mest_fed.cli.twin import DeviceTwin, Pair, compare_with_twins
from mest_fed.devices import DeviceProfile, load_profile, read_profile
from mest_fed.devices.calibration.board_profile import profile_toml
from mest_fed.devices.calibration.link import LinkServer
from mest_fed.errors import InputError, not_allowed
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.runs import Run

ROUNDS_WITHIN, PEAKS_WITHIN = 0.20, 0.05
COLUMNS = {
    "case": "name",
    "predicted": "ours",
    "measured": "peer",
    "unit": "unit",
    "predicted / measured": "ratio",
    "quartiles": "ratio_quartiles",
}


@dataclass(frozen=True)
class Case:
    """What a device trains: a model on examples of a shape, drawn at random."""

    model: str
    shape: tuple[int, ...]
    scheme: str
    density: float
    examples: int

    @property
    def name(self) -> str:
        """Name of its rows."""
        size, of = "x".join(map(str, self.shape)), f" {self.density:g}" * (self.density < 1)
        return f"{self.model} on {size}, {self.scheme}{of}, {self.examples} examples"

    def settings(self, rounds: int, data: Path) -> list[str]:
        """Return the run's configuration."""
        dense = self.scheme == "dense"
        method = "dense" if dense else "mest-em"
        return [
            f"run.rounds={rounds}",
            "fleet.devices=1",
            "fleet.mix='rpi-4:1'",
            "data.name='npz'",
            f"data.path='{data}'",
            "data.partition='iid'",
            f"model.name='{self.model}'",
            f"sparsity.method='{method}'",
            f"sparsity.density={self.density}",
            *([] if dense else [f"sparsity.scheme='{self.scheme}'"]),
            "server.clients_per_round=1",
            "server.min_nodes=1",
            "server.central_evaluation=false",
            "server.evaluate_clients_every=0",
            "training.learning_rate=0.01",
        ]


_PICTURES, _DIGITS = (3, 32, 32), (1, 8, 8)
CASES = (
    Case("resnet20", _PICTURES, "dense", 1.0, 320),
    Case("resnet20", _PICTURES, "block", 0.1, 640),
    Case("resnet20", _PICTURES, "unstructured", 0.1, 640),
    Case("resnet8", _PICTURES, "block", 0.1, 640),
    Case("cnn2", _PICTURES, "unstructured", 0.1, 640),
    Case("resnet8", _DIGITS, "block", 0.1, 1000),
    Case("mlp", _DIGITS, "block", 0.1, 2000),
)


def held(core: int, *command: str) -> list[str]:
    """Return the command that runs a module of ours on one core."""
    pinned = (
        f"import os, runpy, sys; os.sched_setaffinity(0, {{{core}}}); del sys.argv[0]; "
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-c", pinned, *command]


def calibrated(core: int, out: Path, *, quick: bool) -> str:
    """Calibrate the core; return what it said."""
    with LinkServer(("127.0.0.1", 0)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--out", str(out), "--force", "--like", "rpi-4", "--threads", "1"]
        options += ["--server", f"127.0.0.1:{server.port}", *(["--quick"] if quick else [])]
        done = subprocess.run(
            held(core, "mest_fed.devices.calibration", *options),
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    if done.returncode:
        raise InputError(f"the core was not calibrated: {done.stderr.strip()}")
    return done.stdout


def write_data(case: Case, folder: Path) -> None:
    """Write the examples: the server's, of which it needs the shape alone, and the device's."""
    rng = np.random.default_rng(0)
    for name, count in (("train", case.examples), ("test", 20)):
        inputs = rng.normal(size=(count, *case.shape)).astype(np.float32)
        targets = np.arange(count) % 10
        np.savez(folder / f"{name}.npz", inputs=inputs, targets=targets)


class ProcessorTime:
    """Watches what processor time a process has had when each round's row was written.

    Parameters
    ----------
    pid : int
        Of the process.
    rows : Path
        The run's ``clients.jsonl``.
    """

    def __init__(self, pid: int, rows: Path) -> None:
        self._process, self._rows = psutil.Process(pid), rows
        self._at: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProcessorTime":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            done = self._rows.read_bytes().count(b"\n") if self._rows.exists() else 0
            if done > len(self._at):
                times = self._process.cpu_times()
                self._at.append(times.user + times.system)
            if self._stop.wait(0.02):
                return

    @property
    def of_round(self) -> float:
        """Seconds of a round, the mean of all but the first."""
        return (self._at[-1] - self._at[0]) / (len(self._at) - 1)


def trained(case: Case, core: int, rounds: int, folder: Path) -> tuple[Run, float]:
    """Have a node train; return the run, and the node's processor time of a round."""
    folder.mkdir()
    write_data(case, folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    settings = [f"--set={each}" for each in case.settings(rounds, folder)]
    out = folder / "run"
    command = [sys.executable, "-m", "mest_fed", "server", "--insecure", "--listen", where]
    others = set(os.sched_getaffinity(0)) - {core} or {core}
    node_options = [
        *("--link", where, "--data", str(folder / "train.npz"), "--state", str(folder / "state")),
        *("--device", "rpi-4", "--name", "twin", "--insecure", "--give-up", "60"),
    ]
    with (folder / "log").open("wb") as log, (folder / "node.log").open("wb") as nodes_log:
        server = subprocess.Popen(
            [*command, "--out", str(out), *settings],
            stdout=log,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, others),
        )
        node = subprocess.Popen(
            [sys.executable, "-m", "mest_fed", "node", *node_options],
            stdout=nodes_log,
            stderr=nodes_log,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        try:
            with ProcessorTime(node.pid, out / "clients.jsonl") as watched:
                status = server.wait(timeout=600)
        finally:
            for process in (node, server):
                process.kill()
                process.wait()
    if status:
        raise InputError(
            f"{case.name}: the server ended with {(folder / 'log').read_text()[-400:]}"
        )
    found = load_run(out)
    assert isinstance(found, Run)
    return found, watched.of_round


def rows_of(case: Case, twin: DeviceTwin, processor: float) -> Iterator[Row]:
    """Yield the rows of a case."""
    assert twin.own is not None
    own = statistics.median(twin.own.predicted)
    for what, pair, unit, scale in (
        ("round", twin.rounds, "s", 1.0),
        ("the device's own part", twin.own, "s", 1.0),
        ("its processor time", Pair((own,), (processor,)), "s", 1.0),
        ("peak", twin.peak, "MB", 1e-6),
    ):
        if pair is not None:
            yield {
                "name": f"{case.name}: {what}",
                "ours": round(statistics.median(pair.predicted) * scale, 4),
                "peer": round(statistics.median(pair.measured) * scale, 4),
                "unit": unit,
                "ratio": round(pair.ratio, 3),
                "ratio_quartiles": [round(each, 3) for each in pair.quartiles],
                "runs": len(pair.measured),
            }


def without_first(found: Run) -> Run:
    """Leave the seconds of the first round out; its peak stays."""
    return replace(found, tasks=tuple(task for task in found.tasks if task.round > 1))


def mean_of(one: DeviceProfile, other: DeviceProfile) -> DeviceProfile:
    """Return the profile of a device between two moments: geometric means of rates."""
    table = one.as_table()
    for kind, rate in one.flops.items():
        table["flops"][kind] = math.sqrt(rate * other.flops[kind])
    for name in ("memory_rate", "core_speed", "gather_speed", "message_seconds"):
        table[name] = math.sqrt(getattr(one, name) * getattr(other, name))
    return read_profile(one.name, table, "")


def measure(
    options: argparse.Namespace, core: int, profiles: list[DeviceProfile], folder: Path
) -> Iterator[Row]:
    """Train each case between two calibrations; yield its rows, and add the profiles."""
    before, around = folder / "calibrated.toml", folder / "around.toml"
    print(calibrated(core, before, quick=options.quick))
    profiles.append(load_profile(str(before)))
    for number in options.cases:
        case = CASES[number - 1]
        found, processor = trained(case, core, options.rounds + 1, folder / str(number))
        calibrated(core, before, quick=options.quick)
        profiles.append(load_profile(str(before)))
        around.write_text(profile_toml(mean_of(*profiles[-2:])), encoding="utf-8")
        (later,) = compare_with_twins(without_first(found), str(around))
        (whole,) = compare_with_twins(found, str(around))
        yield from rows_of(case, replace(later, peak=whole.peak), processor)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__.splitlines()[0], {"rounds": 2, "cases": [1]})
    parser.add_argument("--rounds", type=positive, default=6, help="that count, of each case")
    every = list(range(1, len(CASES) + 1))
    parser.add_argument("--cases", type=positive, nargs="+", default=every, help="from 1")
    options = parser.parse_args(arguments)
    for number in options.cases:
        if number > len(CASES):
            raise not_allowed("--cases", number, f"1 to {len(CASES)}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it started ends with it
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        profiles: list[DeviceProfile] = []
        rows = collect(measure(options, core, profiles, Path(name)))
    drift = {
        kind: round(profiles[0].flops[kind] / profiles[-1].flops[kind], 3)
        for kind in ("dense", "block", "unstructured")
    }
    show("Predicted (modelled) against measured: a lean node on one core", rows, COLUMNS)
    goals = (("round", ROUNDS_WITHIN), ("processor time", ROUNDS_WITHIN), ("peak", PEAKS_WITHIN))
    for what, within in goals:
        some = [row for row in rows if row["name"].endswith(what)]
        near = sum(1 - within <= row["ratio"] <= 1 + within for row in some)
        print(f"{near} of {len(some)} {what}s within {within:.0%}")
    print(f"time of steps after the runs over before: {drift}")
    if options.json:
        tables = [each.as_table() for each in profiles]
        write_json(
            options.json,
            rows,
            software=software("numpy", "grpcio", "torch"),
            profiles=tables,
            drift=drift,
        )


if __name__ == "__main__":
    run(main)
