"""A server and lean nodes as real processes on one machine, for whole runs and for faults."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from link_parts import QUICK

from mest_fed.config import from_flat, from_table, to_flat, to_toml
from mest_fed.data.partition_files import save_share
from mest_fed.kernels import torch_threads
from mest_fed.link.server.edge_server import EdgeServer
from mest_fed.link.server.grid import LinkGrid
from mest_fed.link.server.lean_run import LeanRun
from mest_fed.process_tasks import PROCESS_TASKS
from mest_fed.server.app import build_server_app
from mest_fed.server.flower_internals import run_server_app
from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.simulation.simulate import open_run
from mest_fed.simulation.trackers.progress import Observers
from mest_fed.task import Task

#: Nodes that are killed are missed soon, and those that are restarted may ask for programs at once.
LIMITS = replace(QUICK, chunk_bytes=8192, programs_per_second=100.0, heartbeat_seconds=1.0)

#: Budgets of the four devices: one must take small micro-batches, one a lower density.
DEVICES = ("rpi-zero-2w", "rpi-4", "rpi-3b-plus", "jetson-nano")
SETTINGS = {
    "run": {"rounds": 3, "seed": 5},
    "data": {"name": "digits"},
    "model": {"name": "resnet8", "width": 0.5, "norm": "group"},
    "sparsity": {"density": 0.2, "method": "mest-em"},
    "training": {"batch_size": 32, "device": "cpu"},
    "wire": {"upload": "int8"},
    "server": {
        "clients_per_round": 4,
        "min_nodes": 4,
        "evaluate_clients_every": 2,
        "evaluate_clients": 4,
    },
    "forgetting": {"fraction": 0.3, "start": 0.3},
    "fleet": {
        "devices": 4,
        "mix": ", ".join(f"{name}:1" for name in DEVICES),
        "budgets": "rpi-zero-2w:0.8MB, rpi-3b-plus:1.8MB",
    },
    "behaviour": {"availability": "always"},
}


def config_of(**sections):
    """Return the configuration of a small run of four devices, with changes."""
    table = {section: dict(keys) for section, keys in SETTINGS.items()}
    for section, keys in sections.items():
        table[section] = table.get(section, {}) | keys
    return from_table(table, "test")


def simulated(config, folder):
    """Return the digest of the weights that the simulation of a run ends with."""
    unmeasured = patch.object(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    with torch_threads(1), unmeasured:
        open_run("tiny", config, Path(folder), resume=False, observer=Observers()).run(0)
    return json.loads((Path(folder) / "summary.json").read_text("utf-8"))["model_sha256"]


def free_port():
    """Return a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Edge:
    """A folder with a configuration and the examples of its devices; processes that run in it."""

    def __init__(self, folder, config):
        self.folder, self.config = Path(folder), config
        self.task = Task(config)
        self.port = 0
        self.server_process = self.link = self.thread = None
        self.processes, self.failures = [], []
        (self.folder / "run.toml").write_text(to_toml(config), encoding="utf-8")
        for number, rows in enumerate(self.task.partitions):
            save_share(self.folder / f"part{number}.npz", self.task.data.train, rows)

    def serve(self, *options, link=("--insecure",), resume=False, name="server"):
        """Start a server; wait until it listens."""
        where = ["--resume"] if resume else [str(self.folder / "run.toml")]
        command = ["-m", "mest_fed", "server", *where, "--out", str(self.folder / "run")]
        command += ["--listen", f"127.0.0.1:{self.port}", *link, *options]
        self.server_process = self._start(name, command)
        line = self.line(name, "listens on port", process=self.server_process)
        self.port = int(line.partition("port ")[2].partition(";")[0])
        return self.server_process

    def serve_here(self, *, limits=LIMITS, tls=None, port=0):
        """Run the server in this process; return the thread of the run."""
        where = {"deployment.folder": str(self.folder / "run")}
        config = from_flat(to_flat(self.config) | where)
        task = Task(config)
        flat = to_flat(config)
        PROCESS_TASKS.put(flat, task)
        run = LeanRun(task)
        how = {"describe": run.describe, "program": run.programs, "limits": limits, "tls": tls}
        link = EdgeServer(f"127.0.0.1:{port}", insecure=tls is None, **how)
        self.link, self.port, self.failures = link, link.port, []
        self.grid = LinkGrid(link, run, deadline=config.fleet.deadline)

        def serve():
            try:
                with patch("mest_fed.server.deployed.write_report", lambda _: None):
                    run_server_app(build_server_app(), self.grid, run_config=flat)
            except BaseException as error:
                self.failures.append(error)

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        return self.thread

    def ended_here(self, seconds=60.0):
        """Wait until the run in this process has ended; return its summary."""
        self.thread.join(seconds)
        assert not self.thread.is_alive(), self.logs()
        assert not self.failures, self.failures
        return self.summary

    def logs(self):
        """Return all logs, for a failure."""
        return {file.stem: file.read_text("utf-8") for file in self.folder.glob("*.log")}

    def node(self, number, *options, link=("--insecure",), dies="", port=0, log=None, budget=True):
        """Start a node; ``dies`` is code that runs in it before it begins."""
        device = self.task.devices[number]
        limits = ["--budget", str(self.task.budget(device))] if budget else []
        arguments = ["--link", f"127.0.0.1:{port or self.port}", *link, "--device", device]
        arguments += ["--data", str(self.folder / f"part{number}.npz"), *limits]
        arguments += ["--partition", str(number), "--name", f"node{number}", "--give-up", "30"]
        arguments += ["--state", str(self.folder / f"state{number}"), *options]
        start = ["-m", "mest_fed.link.node"]
        if dies:
            code = textwrap.dedent(dies) + "\nfrom mest_fed.link.node.command import main\nmain()\n"
            start = ["-c", code]
        return self._start(log or f"node{number}", ["-OO", *start, *arguments])

    def command(self, *arguments):
        """Run a command to its end; return what it printed."""
        command = [sys.executable, "-m", "mest_fed", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    def log(self, name):
        """Return what a process has written so far."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def line(self, name, text, *, process=None, seconds=60.0, times=1):
        """Wait for a line with a text in a log; return the line."""
        end = time.monotonic() + seconds
        while True:
            found = [line for line in self.log(name).splitlines() if text in line]
            if len(found) >= times:
                return found[times - 1]
            ended = process is not None and process.poll() is not None
            assert not ended, f"{name} has ended: {self.log(name)}"
            assert time.monotonic() < end, f"no {text!r} in {name}: {self.log(name)}"
            time.sleep(0.02)

    def end(self, process=None, seconds=90.0):
        """Wait until a process, by default the server, has ended; return its status."""
        return (process or self.server_process).wait(timeout=seconds)

    def rows(self, name):
        """Return the rows of a log of the run."""
        text = (self.folder / "run" / f"{name}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def summary(self):
        return json.loads((self.folder / "run" / "summary.json").read_text(encoding="utf-8"))

    def _start(self, name, arguments):
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["nice", "-n", "5", sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
        if self.link is not None:
            self.link.close()


def killed_at(place, *, when="True", before=True):
    """Return code that kills the process where a function of the node begins, or has ended.

    Parameters
    ----------
    place : str
        ``module:Class.function`` or ``module:function`` below ``mest_fed.link.node``.
    when : str
        A condition of the function's ``args``.
    before : bool
        Whether before the function does anything.
    """
    module, _, name = place.partition(":")
    owner, _, function = name.rpartition(".")
    return textwrap.dedent(f"""
        import os, signal
        import mest_fed.link.node.{module} as module
        owner = module{"." + owner if owner else ""}
        function = owner.{function}
        def wrapped(*args, **options):
            dies = {when}
            if dies and {before}:
                os.kill(os.getpid(), signal.SIGKILL)
            found = function(*args, **options)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return found
        owner.{function} = wrapped
    """)
