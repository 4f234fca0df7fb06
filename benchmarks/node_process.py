"""A SuperLink, a node and runs for it on loopback, as ``mest-fed client`` and ``flwr run`` do it.

What the benchmarks of a node share: they look at its tree of processes while it works.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent
CONNECTION = """
[superlink]
default = "loopback"

[superlink.loopback]
address = "127.0.0.1:{port}"
insecure = true
"""
#: One device, alone in its fleet, that trains and does not evaluate.
ONE_DEVICE = (
    "fleet.devices=1",
    "fleet.mix='rpi-4:1'",
    "server.min_nodes=1",
    "server.clients_per_round=1",
    "server.evaluate_clients_every=0",
)
#: Parts of a command line -> whose process it is; the first that is found.
ROLES = {"supervise": "supervisor", "superexec": "superexec", "clientapp": "clientapp"}
#: What works on messages, and ends with them.
WORKERS = ("clientapp", "trainer")


@dataclass
class Node:
    """A node that is ready for runs.

    Parameters
    ----------
    root : psutil.Process
        Its supervisor: all its processes descend from it.
    folder : Path
        Home of Flower's commands; ``node.log``, ``run.log`` and ``runs`` are in it.
    environment : dict of str to str
        Of Flower's commands.
    """

    root: psutil.Process
    folder: Path
    environment: dict[str, str] = field(repr=False)

    def roles(self) -> set[str]:
        """Return whose processes there are now."""
        return {role for _, role in tree(self.root)}

    def run(self, settings: Sequence[str], look: Callable[[], None], every: float = 0.3) -> None:
        """Run the app to its end, and look again and again meanwhile."""
        app = self.folder / "app"
        command = ["flwr", "run", str(app), "loopback", "--stream"]
        command += ["--run-config", " ".join(settings)]
        with started(command, self.folder, self.environment, "run") as run:
            while run.poll() is None:
                look()
                time.sleep(every)
        if run.returncode:
            text = (self.folder / "run.log").read_text("utf-8")
            raise SystemExit("error: the run failed\n" + text)

    def wait_until_idle(self) -> None:
        """Wait until no message is being worked on."""
        wait_for(lambda: not self.roles() & set(WORKERS))


@contextmanager
def running_node(folder: Path, place: Sequence[str]) -> Iterator[Node]:
    """Start a SuperLink and a node in an empty folder; end both in the end.

    ``place`` are the options of ``mest-fed client`` that say which examples the node has.
    """
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
    copy_app(folder / "app")
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    command = ["mest-fed", "client", "--superlink", f"127.0.0.1:{port}", "--insecure", *place]
    command += ["--device", "rpi-4", "--memory-limit", "2GB"]
    with started(link, folder, environment, "superlink"):
        wait_for(lambda: is_open(port))
        with started(command, folder, environment, "node") as process:
            node = Node(psutil.Process(process.pid), folder, environment)
            wait_for(lambda: "superexec" in node.roles())
            time.sleep(8)
            yield node


def own_data(folder: Path, examples: int) -> list[str]:
    """Write a file of a node's own examples, like digits; return the options that name it."""
    images = np.random.default_rng(0).integers(0, 256, (examples, 1, 8, 8), dtype=np.uint8)
    np.savez(folder / "own.npz", images=images, labels=np.arange(examples) % 10)
    return ["--data", str(folder / "own.npz")]


def tree(root: psutil.Process) -> list[tuple[psutil.Process, str]]:
    """Return the processes of a node's tree, and whose each is."""
    found = []
    for process in (root, *root.children(recursive=True)):
        try:
            found.append((process, role_of(process.cmdline(), process.parent())))
        except psutil.NoSuchProcess:
            continue  # it has ended meanwhile
    return found


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


def wait_for(test: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait until a test holds."""
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            raise SystemExit("error: the node or its SuperLink did not start")
        time.sleep(0.1)


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def copy_app(folder: Path) -> None:
    """Copy what the app's bundle is built from."""
    folder.mkdir()
    for name in ("clients", "server"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
