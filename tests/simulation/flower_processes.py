"""Flower's own processes for the tests: started with a home of their own, stopped by their pid."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
PATIENCE = 400
#: Flower's configuration of one SuperLink on this machine.
CONNECTION = """
[superlink]
default = "loopback"

[superlink.loopback]
address = "127.0.0.1:{port}"
insecure = true
"""
#: A run of two rounds with two devices.
TWO_DEVICES = (
    "run.rounds=2",
    "fleet.devices=2",
    "model.width=0.25",
    "server.min_nodes=2",
    "server.clients_per_round=2",
    "server.evaluate_clients_every=0",
)
ROUND = re.compile(r"round (\d+): \S+ ([\d.]+)%?, .*; tasks: ([^;]+); ")
COUNTED = re.compile(r"(\d+) (ok|failed|rejected)")


def copy_app(folder):
    """Copy what the bundle of the app is built from into a new folder; return the folder."""
    folder.mkdir()
    for name in ("clients", "server"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def is_open(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class FlowerHome:
    """A home of Flower's commands; everything that was started with it ends at the exit.

    Parameters
    ----------
    folder : Path
        An empty folder.
    """

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        self.launched = []
        # Nothing is installed, reported or looked up.
        self.environment = os.environ | {
            "FLWR_HOME": str(folder),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_ADDRESS": "local",  # not a cluster that another test has on this machine
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """End all processes of this home, the detached ones as well."""
        mine = [process for process in psutil.process_iter() if self._owns(process)]
        for process in mine:
            process.terminate()
        _, stubborn = psutil.wait_procs(mine, timeout=20)
        for process in stubborn:
            process.kill()
        for process in self.launched:
            process.wait(timeout=20)

    def pending_task(self, *command):
        """Start a command in the background; its output goes to a file in the home."""
        with (self.folder / f"{Path(str(command[0])).name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                env=self.environment,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self.launched.append(process)
        return process

    def launch_server(self, port, *command):
        """Start a command in the background, wait until it listens, and return its process."""
        process = self.pending_task(*command, "--port", port)
        end = time.monotonic() + PATIENCE
        while not is_open(port):
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            assert time.monotonic() < end, f"{command[0]} does not listen on {port}"
            time.sleep(0.1)
        return process

    def run_app(self, app, *arguments, settings):
        """Run an app with ``flwr run``; return what the server logged, and its rounds.

        Each round is (number, metric or percent, [ok, failed, rejected]).
        """
        done = subprocess.run(
            ["flwr", "run", str(app), *arguments, "--stream", "--run-config", " ".join(settings)],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        text = done.stdout + done.stderr
        assert done.returncode == 0, text
        return text, [
            (int(number), float(percent), _counts(tasks))
            for number, percent, tasks in ROUND.findall(text)
        ]

    def _owns(self, process):
        try:
            return process.environ().get("FLWR_HOME") == str(self.folder)
        except (psutil.Error, OSError):
            return False


def _counts(tasks):
    found = {word: int(count) for count, word in COUNTED.findall(tasks)}
    return [found.get(word, 0) for word in ("ok", "failed", "rejected")]
