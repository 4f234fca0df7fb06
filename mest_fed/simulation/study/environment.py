"""Where a study was computed: versions, machine, date and, in a clone, the commit."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mest_fed
from mest_fed.run_rows.facts import Machine
from mest_fed.run_rows.row import as_row
from mest_fed.server.summary import versions
from mest_fed.simulation.provenance import command_line, this_machine
from mest_fed.simulation.report.formats import count_of
from mest_fed.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a record says of where its rows come from.

    Parameters
    ----------
    command : str
        What wrote the results.
    written : str
        When, as an ISO 8601 time in UTC.
    machine : Machine
        Where.
    versions : dict of str to str
        Of Python and of packages.
    commit : str
        Of the clone that the package is in; empty where it is installed otherwise.
    earlier : tuple of mapping
        The tables of the environments in which rows were computed before, the eldest first.
    """

    command: str
    written: str
    machine: Machine
    versions: dict[str, str]
    commit: str
    earlier: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def here(cls, earlier: Sequence[Mapping[str, Any]] = ()) -> "Environment":
        """Return that of this process, and of the rows that it did not compute."""
        return cls(
            command=command_line(sys.argv),
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=this_machine(),
            versions=versions(),
            commit=_commit(Path(mest_fed.__file__).parents[1]),
            earlier=tuple(earlier),
        )

    def as_table(self) -> dict[str, Any]:
        """Return it as a table for JSON."""
        return as_row(self)

    def facts(self) -> list[tuple[str, str]]:
        """Return it for people, without the command."""
        machine = self.machine
        named = f"{machine.cpu}, " if machine.cpu else ""
        facts = [
            ("Written", f"{datetime.fromisoformat(self.written):%Y-%m-%d %H:%M} UTC"),
            (
                "Machine",
                f"{named}{count_of(machine.cores, 'core')}, "
                f"{format_bytes(machine.memory_bytes)} of memory",
            ),
            ("System", f"{machine.system}, {machine.architecture}"),
            ("Versions", ", ".join(f"{name} {text}" for name, text in self.versions.items())),
        ]
        if self.commit:
            facts.append(("Commit", self.commit))
        facts += [("Rows of before", _in_short(each)) for each in self.earlier]
        return facts


def _in_short(earlier: Mapping[str, Any]) -> str:
    machine = earlier["machine"]
    parts = (f"written {earlier['written'][:16]}", machine["cpu"], earlier["commit"])
    return ", ".join(part for part in parts if part)


def _commit(folder: Path) -> str:
    """Return the commit of a clone, marked where files have changed since; empty of none."""
    if not (folder / ".git").exists():
        return ""
    try:
        said = [
            subprocess.run(
                ["git", "-C", str(folder), *words],
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{said[0]} with changes" if said[1] else said[0]
