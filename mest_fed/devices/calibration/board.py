"""What a board's system tells: its memory, what a lean node takes of it, its power."""

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mest_fed.errors import MestFedError
from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT
from mest_fed.system.power import PowerMeter
from mest_fed.system.proc import PROC

#: Seconds between two looks at a battery's flow.
_LOOK_SECONDS = 0.05
#: What a lean node has loaded before it trains, in the order in which it does.
_NODE_MODULES = tuple(
    f"mest_fed.link.node.{it}"
    for it in ("__main__", "command", "worker", "waiting:wait_for_nobody")
)
_MEASURE = (
    "import importlib, sys\n"
    "for name, _, call in (each.partition(':') for each in sys.argv[1:]):\n"
    "    module = importlib.import_module(name)\n"
    "    if call: getattr(module, call)()\n"
    "from mest_fed.system.proc import resident_bytes\n"
    "print(resident_bytes())\n"
)
#: How `mest-fed node` starts.
_FLAGS, _ENVIRONMENT = ("-OO",), {**ALLOCATOR_ENVIRONMENT, "GRPC_VERBOSITY": "NONE"}


@dataclass(frozen=True)
class BoardMemory:
    """A board's memory, measured.

    Parameters
    ----------
    total : int
        Bytes that the system has.
    taken : int
        Bytes that are not available to programs, this one's included.
    """

    total: int
    taken: int


def read_memory(proc: Path = PROC) -> BoardMemory | None:
    """Return what ``/proc/meminfo`` says; None where it does not."""
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: 1024 * int(rest.split()[0]) for name, _, rest in map(_parts, lines)}
        total, available = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return BoardMemory(total, total - available)


def _parts(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def board_name(root: Path = Path("/")) -> str:
    """Return what the system calls this board, or its processor's architecture."""
    try:
        return (root / "proc/device-tree/model").read_bytes().rstrip(b"\0").decode("utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def node_bytes(modules: tuple[str, ...] = _NODE_MODULES) -> int:
    """Return what a lean node takes that waits for work: measured, in a process of its own.

    It is all that is resident (RSS), libraries included, as a node alone on its machine has it, and
    as plans and limits count it. A share (PSS) would leave out what this process maps as well.

    Raises
    ------
    MestFedError
        If a module cannot be imported.
    """
    done = subprocess.run(
        [sys.executable, *_FLAGS, "-c", _MEASURE, *modules],
        env={**_ENVIRONMENT, **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise MestFedError(f"a lean node cannot be measured: {reason}")
    return int(done.stdout)


class Power:
    """Watches a meter while something is done.

    Parameters
    ----------
    meter : PowerMeter
        What tells energy.

    Attributes
    ----------
    watts : float
        Mean power of the last time it was watched.
    """

    def __init__(self, meter: PowerMeter) -> None:
        self._meter, self.watts = meter, 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch until the block is left."""
        if self._meter.joules is not None:
            joules, start = self._meter.joules(), time.monotonic()
            yield
            self.watts = (self._meter.joules() - joules) / (time.monotonic() - start)
            return
        seen: list[float] = []
        stop = threading.Event()
        looker = threading.Thread(target=self._look, args=(seen, stop), daemon=True)
        looker.start()
        try:
            yield
        finally:
            stop.set()
            looker.join()
        self.watts = sum(seen) / len(seen)

    def _look(self, seen: list[float], stop: threading.Event) -> None:
        assert self._meter.watts is not None
        while True:
            seen.append(self._meter.watts())
            if stop.wait(_LOOK_SECONDS):
                return
