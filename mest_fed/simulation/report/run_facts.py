"""What the page says of a run's origin: command, date, machine, versions, changed settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mest_fed.run_rows.facts import Machine, Provenance
from mest_fed.simulation.report.formats import count_of
from mest_fed.simulation.report.runs import FleetRun
from mest_fed.units import format_bytes

#: Packages named beside the machine; all are in the list at the end of the page.
_NAMED = ("mest-fed", "python", "torch", "flwr", "ray")
EMPTY = "(empty)"


@dataclass(frozen=True)
class Origin:
    """A run's origin, formatted.

    Parameters
    ----------
    facts : list of (str, str)
        Names and values.
    command : str
        What began it.
    changed : str
        How many settings differ, and from what, in one sentence.
    changes : list of (str, str, str)
        Key, value before and value in this run.
    against : str
        What the second is called.
    """

    facts: list[tuple[str, str]]
    command: str
    changed: str
    changes: list[tuple[str, str, str]]
    against: str


def origin_of(run: FleetRun) -> Origin | None:
    """Return what a run folder says of the run's origin; None in those of earlier versions."""
    found = run.provenance
    if found is None:
        return None
    return Origin(
        facts=[
            ("Started", _date(found.started)),
            ("Machine", _machine(found.machine)),
            ("System", f"{found.machine.system}, {found.machine.architecture}"),
            ("Versions", _versions(found.versions)),
        ],
        command=found.command,
        changed=_changed(found),
        changes=[(c.key, c.before or EMPTY, c.after or EMPTY) for c in found.changes],
        against=f"preset {found.base}" if found.base else "default",
    )


def _date(text: str) -> str:
    try:
        date = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return text
    return f"{date:%Y-%m-%d %H:%M} UTC"


def _machine(machine: Machine) -> str:
    cores = count_of(machine.cores, "core")
    if machine.cores != machine.machine_cores:
        cores += f" of {machine.machine_cores}"
    named = f"{machine.cpu}, " if machine.cpu else ""
    return f"{named}{cores}, {format_bytes(machine.memory_bytes)} of memory"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {versions[name]}" for name in _NAMED if name in versions)


def _changed(found: Provenance) -> str:
    of = f"the preset {found.base}" if found.base else "the defaults"
    if not found.changes:
        return f"No setting differs from {of}."
    differ = "differs" if len(found.changes) == 1 else "differ"
    return f"{count_of(len(found.changes), 'setting')} {differ} from {of}."
