"""What a record knows of a study's runs already, so that they need not be computed again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mest_fed.config import from_table, read_toml
from mest_fed.errors import InputError
from mest_fed.simulation.study.grid import Cell, digest_of
from mest_fed.simulation.study.record import CONFIGS, ENVIRONMENT, read_tables
from mest_fed.simulation.study.rows import DONE, KnownRun
from mest_fed.simulation.study.study_folder import RESULTS, ROUND_ROWS
from mest_fed.strict_json import read_json

Row = Mapping[str, Any]


@dataclass(frozen=True)
class KnownRuns:
    """The runs of a record that have ended.

    Parameters
    ----------
    runs : mapping of str to KnownRun
        By the digest of their configuration, every key of which is read anew: a key that has come
        since has its default.
    environment : mapping
        Where the record was computed, as its file says.
    """

    runs: Mapping[str, KnownRun]
    environment: Mapping[str, Any]

    def of(self, cell: Cell) -> KnownRun | None:
        """Return what is known of a cell's run."""
        return self.runs.get(cell.digest)

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Where its rows come from, the eldest first."""
        newest = dict(self.environment)
        return [*newest.pop("earlier", []), newest]


def read_known(place: Path) -> KnownRuns:
    """Read a record.

    Raises
    ------
    InputError
        If it is none, or a part of it is missing or damaged.
    """
    if not (place / ENVIRONMENT).exists():
        raise InputError(f"--reuse {place} is no record: {ENVIRONMENT} is missing")
    environment = read_json(place / ENVIRONMENT, dict)
    results, rounds = read_tables(place, (RESULTS, ROUND_ROWS))
    of_cell: dict[str, list[Row]] = {}
    for row in rounds:
        of_cell.setdefault(row["cell"], []).append(row)
    found = {}
    for row in results:
        if row["status"] == DONE and row["cell"] == row["run"]:
            path = place / CONFIGS / f"{row['run']}.toml"
            digest = digest_of(from_table(read_toml(path), str(path)))
            found[digest] = KnownRun(row, tuple(of_cell.get(row["cell"], ())))
    return KnownRuns(found, environment)
