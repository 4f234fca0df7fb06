"""What a device's processes take before they train: each is imported in a process of its own.

Started as a process (``python -m mest_fed.cli.baseline COMMAND [MODULE ...]``) this measures one.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points

from mest_fed.errors import MestFedError
from mest_fed.system.limits import RLIMIT
from mest_fed.system.proc import read_sizes, resident_bytes


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
    """

    resident: int
    own: int
    reserved: int


@dataclass(frozen=True)
class Baseline:
    """A device's processes before they train.

    Parameters
    ----------
    client_app, supernode, superexec : ProcessMemory
        The ClientApp, and the two processes of Flower that stay beside it.
    """

    client_app: ProcessMemory
    supernode: ProcessMemory
    superexec: ProcessMemory

    @property
    def beside(self) -> int:
        """Bytes of Flower's two processes; what libraries they map, the ClientApp maps as well."""
        return self.supernode.own + self.superexec.own

    @property
    def together(self) -> int:
        """Bytes of all three."""
        return self.client_app.resident + self.beside

    def taken(self, kind: str) -> int:
        """Return the bytes charged against a limit of a kind (``MemoryLimit.kind``)."""
        alone = kind == RLIMIT  # it bounds each process by itself
        return self.client_app.resident if alone else self.together


def measure_baseline(environment: Mapping[str, str]) -> Baseline:
    """Measure, one process after the other (seconds).

    Parameters
    ----------
    environment : mapping of str to str
        The environment that the node will have.

    Raises
    ------
    MestFedError
        If one cannot be imported.
    """
    return Baseline(
        measure_client_app(environment),
        measure_process(["flower-supernode"], environment),
        measure_process(["flower-superexec"], environment),
    )


def measure_client_app(environment: Mapping[str, str]) -> ProcessMemory:
    """Measure a ClientApp alone, which is the process that trains.

    Raises
    ------
    MestFedError
        If it cannot be imported.
    """
    return measure_process(["flwr-clientapp", "mest_fed.client.handlers"], environment)


def measure_reserved(environment: Mapping[str, str]) -> int:
    """Measure the address space that a ClientApp reserves beyond what is resident, in bytes.

    Raises
    ------
    MestFedError
        If something cannot be imported.
    """
    return measure_client_app(environment).reserved


def measure_process(what: Sequence[str], environment: Mapping[str, str]) -> ProcessMemory:
    """Measure a process that imports a console script's module, and others after it.

    Parameters
    ----------
    what : sequence of str
        Name of the script, then names of modules.
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
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise MestFedError(f"{what[0]} cannot be imported: {reason}")
    return ProcessMemory(**json.loads(done.stdout.splitlines()[-1]))


def _this_process() -> ProcessMemory:
    sizes, resident = read_sizes(), resident_bytes()
    own = resident - sizes.get("RssFile", 0)
    return ProcessMemory(resident, own, max(0, sizes.get("VmSize", resident) - resident))


def _main(command: str, *modules: str) -> None:
    (script,) = entry_points(group="console_scripts", name=command)
    script.load()
    for module in modules:
        importlib.import_module(module)
    print(json.dumps(asdict(_this_process())))


if __name__ == "__main__":
    _main(*sys.argv[1:])
