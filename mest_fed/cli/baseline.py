"""What a device's node takes before training adds anything: the one place that knows.

:func:`measure_baseline` measures this machine's: each process is imported in one of its own, the
ClientApp as it works on a message, in a child (:mod:`mest_fed.client.isolation`). ``client`` and
``plan --memory-limit`` ask it. :data:`RECORDED` is what it gave on one machine: ``devices`` and
``plan --device`` tell by it what a device that is elsewhere has left.

Started as a process (``python -m mest_fed.cli.baseline NAME ...``) this measures one.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points

from mest_fed.errors import MestFedError
from mest_fed.system.limits import RLIMIT
from mest_fed.system.proc import read_shares, read_sizes, resident_bytes
from mest_fed.units import format_bytes

#: First of the names: what comes after the second is loaded in a child, which then gets to work.
_WORKS = "--works"
_KILLED = "it was killed (SIGKILL), as the system does when memory runs out"
#: Shown while it is measured.
MEASURING = "measuring what a client takes on this machine before it trains (up to a minute) ..."


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of one process, in bytes; measured.

    Parameters
    ----------
    resident : int
        All that is resident.
    own : int
        The part of it that no file backs, so that no other process shares it.
    reserved : int
        Address space beyond what is resident.
    parents : int
        What its parent holds beside it and does not share with it; 0 where it was not forked.
    """

    resident: int
    own: int
    reserved: int
    parents: int = 0


@dataclass(frozen=True)
class Baseline:
    """A device's processes before training adds anything.

    Parameters
    ----------
    worker : ProcessMemory
        The process that plans and trains, with its libraries and without data.
    beside : mapping of str to int
        Whose process is beside it -> bytes of it that the worker does not share. What libraries
        the others map, the worker maps as well.
    source : str
        How, where and when it was measured, for people.
    """

    worker: ProcessMemory
    beside: Mapping[str, int]
    source: str = "measured on this machine"

    @property
    def together(self) -> int:
        """Bytes of all of them."""
        return self.worker.resident + self.worker.parents + sum(self.beside.values())

    def in_words(self) -> str:
        """Say what it is made of."""
        parts = {
            "the process that trains": self.worker.resident,
            "its parent": self.worker.parents,
            **self.beside,
        }
        each = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
        return f"{format_bytes(self.together)} before training ({self.source}: {each})"

    def taken(self, kind: str) -> int:
        """Return the bytes charged against a limit of a kind (``MemoryLimit.kind``)."""
        alone = kind == RLIMIT  # it bounds each process by itself
        return self.worker.resident if alone else self.together


#: Measured by :func:`measure_baseline`, rounded; ``benchmarks/node_memory.py`` checks it against
#: the tree of a node that trains. On 64-bit ARM libraries are other builds: there it is a model.
RECORDED = Baseline(
    ProcessMemory(411_200_000, 300_300_000, 452_800_000, 29_300_000),
    {"SuperNode": 90_200_000, "SuperExec": 91_100_000, "supervisor": 15_900_000},
    "measured on x86-64, torch 2.13, Flower 1.41, 2026-11-30; on other machines modelled",
)

#: What a lean node that waits for work takes on a machine of its own, by ``benchmarks/edge.py``.
RECORDED_LEAN = 61_800_000
LEAN_SOURCE = "RSS, measured on x86-64, 2026-11-30; on other machines modelled"


def measure_baseline(environment: Mapping[str, str]) -> Baseline:
    """Measure, one process after the other, and say so: it takes seconds.

    Parameters
    ----------
    environment : mapping of str to str
        The environment that the node will have.

    Raises
    ------
    MestFedError
        If one cannot be imported.
    """
    from mest_fed.cli.speaker import said_meanwhile  # no part of a process that is measured

    with said_meanwhile(MEASURING):
        worker = measure_worker(environment)
        beside = {
            name: measure_process([what], environment).own
            for name, what in (
                ("SuperNode", "flower-supernode"),
                ("SuperExec", "flower-superexec"),
                ("supervisor", "mest_fed.cli.supervise"),
            )
        }
    return Baseline(worker, beside)


def measure_worker(environment: Mapping[str, str]) -> ProcessMemory:
    """Measure the process that works on a message: a ClientApp's child, once it may train.

    Raises
    ------
    MestFedError
        If something cannot be imported.
    """
    return measure_process([_WORKS, "flwr-clientapp", "mest_fed.client.handlers"], environment)


def measure_process(what: Sequence[str], environment: Mapping[str, str]) -> ProcessMemory:
    """Measure a process that imports what is named, one after the other.

    Parameters
    ----------
    what : sequence of str
        Names of console scripts, whose modules are imported, or of modules.
    environment : mapping of str to str
        The environment of the process.

    Raises
    ------
    MestFedError
        If something cannot be imported.
    """
    done = subprocess.run(
        [sys.executable, "-m", "mest_fed.cli.baseline", *what],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    name = next(each for each in what if each != _WORKS)
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2]
        if done.returncode == -signal.SIGKILL:
            reason = _KILLED
        raise MestFedError(f"{name} cannot be imported: {reason}")
    return ProcessMemory(**json.loads(done.stdout.splitlines()[-1]))


def _this_process(parents: int = 0) -> ProcessMemory:
    sizes, resident = read_sizes(), resident_bytes()
    own = resident - sizes.get("RssFile", 0)
    reserved = max(0, sizes.get("VmSize", resident) - resident)
    return ProcessMemory(resident, own, reserved, parents)


def _load(name: str) -> None:
    scripts = entry_points(group="console_scripts", name=name)
    if scripts:
        next(iter(scripts)).load()
    else:
        importlib.import_module(name)


def _work(names: Sequence[str]) -> None:
    """Load what a message needs, but for data: a plan and a step of small models."""
    for name in names:
        _load(name)
    import torch

    from mest_fed.client.capability import load_work
    from mest_fed.config import RunConfig
    from mest_fed.data import ArrayData, DataSplit
    from mest_fed.task import Task

    images = torch.empty(0, 1, 8, 8, dtype=torch.uint8)
    none = ArrayData(images, torch.empty(0, dtype=torch.int64), 10)
    load_work(Task(RunConfig(), data=DataSplit(none, none)))


def _in_child(names: Sequence[str]) -> ProcessMemory:
    """Work in a child, as a ClientApp does on Linux; return what it takes beside this process."""
    gc.collect()
    gc.freeze()  # as it does there, so that as many pages are shared
    parent, (read_end, write_end) = os.getpid(), os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _work(names)
            shares = read_shares(parent)  # while both are there
            private = shares.get("Private_Clean", 0) + shares.get("Private_Dirty", 0)
            os.write(write_end, json.dumps(asdict(_this_process(private))).encode())
            status = 0
        except BaseException as error:  # the child ends here, and says why
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        report = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGKILL:
        print(_KILLED, file=sys.stderr)
    if not report:
        raise SystemExit(1)  # it has said why
    return ProcessMemory(**json.loads(report))


def _main(*names: str) -> None:
    if names[0] != _WORKS:
        for name in names:
            _load(name)
        memory = _this_process()
    else:
        _load(names[1])
        if sys.platform.startswith("linux"):
            memory = _in_child(names[2:])
        else:
            _work(names[2:])
            memory = _this_process()
    print(json.dumps(asdict(memory)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
