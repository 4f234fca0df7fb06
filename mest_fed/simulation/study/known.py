"""What a record knows of a study's runs already, so that they need not be computed again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mest_fed.config import from_table, read_toml
from mest_fed.errors import InputError
from mest_fed.simulation.study.grid import Cell, digest_of
from mest_fed.simulation.study.record import CONFIGS, ENVIRONMENT, read_record, read_tables
from mest_fed.simulation.study.rows import DONE, KnownRun
from mest_fed.simulation.study.study_file import StudyFile
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


def read_known(place: Path, study: StudyFile) -> KnownRuns:
    """Read the record that a study takes runs from.

    Raises
    ------
    InputError
        If it is no record, a part of it is missing or damaged, or its study measured other things.
    """
    if not (place / ENVIRONMENT).exists():
        raise InputError(f"--reuse {place} is no record: {ENVIRONMENT} is missing")
    environment = read_json(place / ENVIRONMENT, dict)
    _check_measures(place, read_record(place).study, study)
    results, rounds = read_tables(place, (RESULTS, ROUND_ROWS))
    try:
        of_cell: dict[str, list[Row]] = {}
        for row in rounds:
            of_cell.setdefault(row["cell"], []).append(row)
        done = [row for row in results if row["status"] == DONE and row["cell"] == row["run"]]
    except KeyError as error:
        raise InputError(f"--reuse {place}: its rows have no column {error}") from None
    found = {}
    for row in done:
        path = place / CONFIGS / f"{row['run']}.toml"
        digest = digest_of(from_table(read_toml(path), str(path)))
        found[digest] = KnownRun(row, tuple(of_cell.get(row["cell"], ())))
    return KnownRuns(found, environment)


def _check_measures(place: Path, recorded: StudyFile, study: StudyFile) -> None:
    """Refuse rows that were measured against another target, or by another protocol."""
    for key in ("protocol", "target"):
        there, here = getattr(recorded.about, key), getattr(study.about, key)
        if there != here:
            raise InputError(
                f"--reuse {place}: its study.{key} is {there!r}; allowed: {here!r}, as the "
                f"study's ({study.source})"
            )
