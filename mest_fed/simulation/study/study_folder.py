"""The folder of a study: its file, a run folder for each configuration, and what failed."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mest_fed.config import from_table, read_toml, to_flat
from mest_fed.errors import InputError
from mest_fed.server.folder_names import CONFIG, SUMMARY
from mest_fed.server.run_folder import RunFolder
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.runs import Run
from mest_fed.simulation.study.grid import Cell, digest_of
from mest_fed.simulation.study.rows import (
    DONE,
    FAILED,
    INTERRUPTED,
    NOT_RUN,
    KnownRun,
    Result,
    result_rows,
)
from mest_fed.simulation.study.study_file import StudyFile, protocol_of
from mest_fed.strict_json import read_json
from mest_fed.system.files import replace_file
from mest_fed.system.folder_lock import LOCK, OWNER, FolderLock, is_held

if TYPE_CHECKING:
    from mest_fed.simulation.study.known import KnownRuns

STUDY, CELLS, RUNS, STUDY_LOG = "study.toml", "cells.json", "runs", "study.log"
RESULTS, ROUND_ROWS, PAGE = "results", "rounds", "study.html"


class RunState(StrEnum):
    """How far the run of a cell has come."""

    NEW = "new"
    BEGUN = "begun"
    """Its folder is there, without a checkpoint."""
    RESUMABLE = "resumable"
    ENDED = "ended"
    KNOWN = "known"
    """A record has its rows, and there is no folder."""


class StudyFolder:
    """A folder that holds one study; use it in a ``with`` block, in which no other process may.

    Parameters
    ----------
    path : Path
        Where it is.
    study : StudyFile
        Which study.
    cells : sequence of Cell
        All of it.
    known : KnownRuns, optional
        Runs that a record has, which need not be computed.
    """

    def __init__(
        self,
        path: Path,
        study: StudyFile,
        cells: Sequence[Cell],
        known: "KnownRuns | None" = None,
    ) -> None:
        self.path, self.study, self.cells, self.known = path, study, cells, known
        self.runs = path / RUNS
        self._failures: dict[str, str] = {}
        self._lock: FolderLock | None = None

    @property
    def is_studied(self) -> bool:
        """Whether a study is in it."""
        return (self.path / CELLS).exists()

    def check(self, *, resume: bool) -> None:
        """Refuse a folder that the study cannot have.

        Raises
        ------
        InputError
            If it holds something else, or the study and ``resume`` is not given, or is given and
            there is none; or if a run in it was of another configuration.
        """
        path = self.path
        if path.exists() and not path.is_dir():
            raise InputError(f"--out {path} is a file; allowed: a folder")
        if not self.is_studied:
            if resume:
                raise InputError(f"--resume: no study in {path} ({CELLS} is missing)")
            others = {each.name for each in path.iterdir()} if path.exists() else set()
            if others - {LOCK, OWNER, STUDY, STUDY_LOG}:
                raise InputError(f"--out {path} is not empty; allowed: a new folder")
            return
        if not resume:
            raise InputError(
                f"--out {path} holds a study already; allowed: --resume, which does what is "
                "missing, or a new folder"
            )
        self._check_same(read_json(path / CELLS, dict))

    def _check_same(self, kept: Mapping[str, Any]) -> None:
        name, runs = kept.get("study"), kept.get("runs")
        if not isinstance(runs, dict):
            raise InputError(f"{self.path / CELLS} is not that of a study")
        if name != self.study.name:
            raise InputError(
                f"--out {self.path} is the folder of the study {name!r}; allowed: that of "
                f"{self.study.name!r}, or a new one"
            )
        self._failures = {run: facts["failure"] for run, facts in runs.items() if facts["failure"]}
        for cell in self.cells:
            if cell.run in runs and runs[cell.run]["digest"] != cell.digest:
                self._differs(cell)

    def _differs(self, cell: Cell) -> None:
        """Refuse a run of another configuration; one that never began is none."""
        path = self.runs / cell.run / CONFIG
        if not path.exists():
            return
        found = cell.as_studied(from_table(read_toml(path), str(path)))
        before, now = to_flat(found), to_flat(cell.studied)
        keys = [key for key in now if before.get(key) != now[key]]
        if keys:
            key = keys[0]
            raise InputError(
                f"the run {cell.run} in {self.path} has {key} = {before.get(key)!r}, and the study "
                f"now {now[key]!r}; allowed: the study as it was, with more cells, or a new folder"
            )

    def __enter__(self) -> "StudyFolder":
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be used: {error}") from None
        self.keep()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def keep(self) -> None:
        """Write down the study, its cells and what failed.

        Raises
        ------
        InputError
            If that cannot be written.
        """
        runs = {
            cell.run: {"digest": cell.digest, "failure": self._failures.get(cell.run, "")}
            for cell in self.cells
        }
        cells = {cell.id: {"run": cell.run, "point": cell.labels} for cell in self.cells}
        table = {"study": self.study.name, "runs": runs, "cells": cells}
        for name, text in ((STUDY, self.study.text), (CELLS, json.dumps(table, indent=2) + "\n")):
            replace_file(self.path / name, text.encode())

    def known_run(self, cell: Cell) -> KnownRun | None:
        """Return what a record has of a cell's run."""
        return None if self.known is None else self.known.of(cell)

    def state(self, cell: Cell) -> RunState:
        """Say how far the run of a cell has come.

        Raises
        ------
        InputError
            If its folder is of another run.
        """
        path = self.runs / cell.run
        if not (path / CONFIG).exists():
            return RunState.NEW if self.known_run(cell) is None else RunState.KNOWN
        found = from_table(read_toml(path / CONFIG), str(path / CONFIG))
        if digest_of(cell.as_studied(found)) != cell.digest:
            self._differs(cell)
            raise InputError(f"{path} is the folder of another run")
        if (path / SUMMARY).exists():
            return RunState.ENDED
        return RunState.RESUMABLE if RunFolder(path).has_checkpoint else RunState.BEGUN

    def clear(self, cell: Cell) -> None:
        """Remove the folder of a run that was killed before its first checkpoint.

        Raises
        ------
        InputError
            If a process still has it.
        """
        path = self.runs / cell.run
        if is_held(path):
            raise InputError(f"{path} is in use by another process")
        shutil.rmtree(path, ignore_errors=True)

    def failed(self, run: str, reason: str) -> None:
        """Keep why a run failed; an empty reason forgets it."""
        if self._failures.get(run, "") != reason:
            self._failures[run] = reason
            self.keep()

    def rows_of(self, run: str) -> list[dict[str, Any]]:
        """Return the rows of the cells of a run."""
        protocol = protocol_of(self.study.about, self.study.source)
        cells = [cell for cell in self.cells if cell.run == run]
        found = self._read(cells[0])
        results = [replace(found, cell=each) for each in cells]
        return result_rows(results, protocol)

    def results(self) -> list[Result]:
        """Return what has come of each cell so far."""
        runs: dict[str, Result] = {}
        return [self._result(cell, runs) for cell in self.cells]

    def _result(self, cell: Cell, runs: dict[str, Result]) -> Result:
        if cell.run not in runs:
            runs[cell.run] = self._read(cell)
        return replace(runs[cell.run], cell=cell)

    def _read(self, cell: Cell) -> Result:
        failure, state = self._failures.get(cell.run, ""), self.state(cell)
        if state == RunState.KNOWN:
            return Result(cell, DONE, known=self.known_run(cell))
        if state != RunState.ENDED:
            begun = NOT_RUN if state == RunState.NEW else INTERRUPTED
            return Result(cell, FAILED if failure else begun, failure)
        try:
            run = load_run(self.runs / cell.run)
        except InputError as error:
            return Result(cell, FAILED, str(error))
        assert isinstance(run, Run)
        if run.summary.warning:
            return Result(cell, FAILED, run.summary.warning, run)
        return Result(cell, DONE, "", run)


def distinct_runs(cells: Iterable[Cell]) -> list[Cell]:
    """Return the first cell of each run."""
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(cell.run, cell)
    return list(found.values())
