"""What a run folder says of a run before it begins: its command, machine and changed settings."""

import os
import platform
import shlex
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mest_fed.config import RunConfig, from_table, to_flat
from mest_fed.run_rows.facts import Change, Machine, Provenance
from mest_fed.server.summary import versions
from mest_fed.simulation.settings import load_table, preset_names
from mest_fed.system.cgroups import available_cores

_CPUINFO = Path("/proc/cpuinfo")


def provenance_of(preset: str, config: RunConfig) -> Provenance:
    """Return what this process knows of a run that it is about to begin.

    Parameters
    ----------
    preset : str
        What the configuration is called; where no preset is, it is compared with the defaults.
    config : RunConfig
        Of the run.
    """
    base = preset if preset in preset_names() else ""
    return Provenance(
        command=command_line(sys.argv),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        versions=versions(),
        base=base,
        changes=changes_from(base, config),
    )


def changes_from(base: str, config: RunConfig) -> tuple[Change, ...]:
    """Return the settings that differ from a preset; from the defaults if ``base`` is empty."""
    reference = RunConfig()
    if base:
        _, source, table = load_table(base, None)
        reference = from_table(table, source)
    before = to_flat(reference)
    return tuple(
        Change(key=key, before=str(before.get(key, "")), after=str(value))
        for key, value in to_flat(config).items()
        if before.get(key) != value
    )


def command_line(arguments: list[str]) -> str:
    """Return a process's command as a person would type it."""
    program, *rest = arguments or [""]
    name = Path(program).name
    if name == "__main__.py":
        name = f"python -m {Path(program).parent.name}"
    return f"{name} {shlex.join(rest)}".strip()


def this_machine(cpuinfo: Path = _CPUINFO) -> Machine:
    """Return what this machine is: cores are those that the process may keep busy."""
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        cpu=_cpu(cpuinfo),
        cores=available_cores(),
        machine_cores=os.cpu_count() or 1,
        memory_bytes=int(psutil.virtual_memory().total),
    )


def _cpu(cpuinfo: Path) -> str:
    """Return the processor's name: Linux has it in a file, other systems in ``platform``."""
    with suppress(OSError, UnicodeDecodeError):
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor()
