"""Read and check a run folder."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mest_fed.errors import InputError
from mest_fed.run_rows.app import AppRoundRow, AppSummary
from mest_fed.run_rows.facts import LabelCounts, Provenance
from mest_fed.run_rows.rounds import ClientRow, RoundRow
from mest_fed.run_rows.summary import Summary
from mest_fed.server.folder_names import KERNELS, LABELS, PROVENANCE
from mest_fed.simulation.report.run_files import (
    T,
    check_increase,
    check_last,
    check_tasks,
    parse_object,
    read_lines,
    read_text,
    validate,
)
from mest_fed.simulation.report.runs import AppRun, Kernels, Run

_APP_ROUND = TypeAdapter(AppRoundRow)
_APP_SUMMARY = TypeAdapter(AppSummary)
_ROUND = TypeAdapter(RoundRow)
_TASK = TypeAdapter(ClientRow)
_SUMMARY = TypeAdapter(Summary)
_KERNELS = TypeAdapter(Kernels)
_PROVENANCE = TypeAdapter(Provenance)
_LABELS = TypeAdapter(LabelCounts)
_MAY_BE_NULL = {"mutation", "final_accuracy", "final_client_accuracy", "energy_joules"}


def load_run(folder: Path, *, unfinished: bool = False) -> Run | AppRun:
    """Read ``config.toml``, ``summary.json``, the logs and, where there is one, ``kernels.json``.

    A configuration with a section ``app`` is that of a Flower app.

    Parameters
    ----------
    folder : Path
        Of the run.
    unfinished : bool
        Whether the run may be unfinished; its summary is then as of its newest checkpoint.

    Raises
    ------
    InputError
        If the folder is not that of such a run, or a file is missing, broken or has lost rows;
        names the file and, where there is one, the line.
    """
    if not folder.is_dir():
        what = "is a file; allowed: the folder of a run" if folder.exists() else "does not exist"
        raise InputError(f"run folder {folder} {what}")
    config = read_text(folder / "config.toml")
    try:
        table = tomllib.loads(config)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{folder / 'config.toml'}: {error}") from None
    if not table:
        raise InputError(f"{folder / 'config.toml'} is empty; allowed: that of the run")
    ended = (folder / "summary.json").exists()
    if "app" in table:
        return _load_app_run(folder, config, ended=ended or not unfinished)
    if unfinished and not ended:
        return _load_our_run_so_far(folder, config)
    return _load_our_run(folder, config)


def _load_our_run(folder: Path, config: str) -> Run:
    summary = read_summary(folder, config)
    rounds = tuple(read_lines(folder / "rounds.jsonl", _ROUND))
    _check_rounds(folder, rounds, summary.rounds)
    tasks = tuple(read_lines(folder / "clients.jsonl", _TASK))
    check_tasks(folder, tasks, summary.tasks)
    return Run(
        folder=folder,
        config=config,
        summary=summary,
        rounds=rounds,
        tasks=tasks,
        **_beside(folder),
    )


def _load_our_run_so_far(folder: Path, config: str) -> Run:
    from mest_fed.simulation.report.unfinished import sum_up

    summary, logs = sum_up(folder)
    places = folder / "rounds.jsonl", folder / "clients.jsonl"
    return Run(
        folder=folder,
        config=config,
        summary=summary,
        rounds=tuple(_validated(_ROUND, logs.rounds, places[0])),
        tasks=tuple(_validated(_TASK, logs.clients, places[1])),
        **_beside(folder),
    )


def _validated(
    adapter: TypeAdapter[T], rows: Sequence[Mapping[str, Any]], path: Path
) -> Iterator[T]:
    for number, row in enumerate(rows, start=1):
        yield validate(adapter, row, f"{path}, line {number}")


def _load_app_run(folder: Path, config: str, *, ended: bool) -> AppRun:
    path = folder / "summary.json"
    if not ended:
        return _load_app_run_so_far(folder, config)
    if not path.exists():
        raise InputError(f"{path} does not exist: the run did not end; see {folder / 'run.log'}")
    rounds, tasks = folder / "rounds.jsonl", folder / "clients.jsonl"
    run = AppRun(
        config=config,
        summary=validate(_APP_SUMMARY, parse_object(read_text(path), str(path)), str(path)),
        # An app may send nothing.
        rounds=tuple(read_lines(rounds, _APP_ROUND)) if rounds.exists() else (),
        tasks=tuple(read_lines(tasks, _TASK)) if tasks.exists() else (),
        provenance=_read_where_there(folder / PROVENANCE, _PROVENANCE),
    )
    check_increase(rounds, run.rounds)
    if run.rounds or run.summary.rounds:
        check_last(rounds, run.rounds, run.summary.rounds)
    check_tasks(folder, run.tasks, run.summary.tasks)
    return run


def _load_app_run_so_far(folder: Path, config: str) -> AppRun:
    from mest_fed.simulation.report.unfinished import sum_up_app

    rounds, tasks = folder / "rounds.jsonl", folder / "clients.jsonl"
    found = tuple(read_lines(rounds, _APP_ROUND, whole=True)) if rounds.exists() else ()
    asked = tuple(read_lines(tasks, _TASK, whole=True)) if tasks.exists() else ()
    if not asked:
        raise InputError(
            f"{folder / 'summary.json'} does not exist, and no client had a result: the run came "
            f"to nothing that a report could show; see {folder / 'run.log'}"
        )
    try:
        summary = sum_up_app(tomllib.loads(config), found, asked)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'config.toml'} is not that of a run: {error!r}") from None
    return AppRun(config=config, summary=summary, rounds=found, tasks=asked)


def _beside(folder: Path) -> dict[str, Any]:
    """Read what a run of ours keeps beside its rounds."""
    return {
        "kernels": _read_where_there(folder / KERNELS, _KERNELS),
        "provenance": _read_where_there(folder / PROVENANCE, _PROVENANCE),
        "labels": _read_where_there(folder / LABELS, _LABELS),
    }


def _read_where_there(path: Path, adapter: TypeAdapter[T]) -> T | None:
    """Read a file that runs of earlier versions lack."""
    if not path.exists():
        return None
    return validate(adapter, parse_object(read_text(path), str(path)), str(path))


def read_summary(folder: Path, config: str = "") -> Summary:
    """Read ``summary.json`` of a run of our own clients.

    Raises
    ------
    InputError
        If it is missing or broken.
    """
    path = folder / "summary.json"
    if not path.exists():
        from mest_fed.simulation.report.unfinished import how_to_go_on

        raise InputError(f"{path} does not exist: {how_to_go_on(folder, config)}")
    raw = parse_object(read_text(path), str(path))
    needed = (f.name for f in fields(Summary) if f.default is f.default_factory is MISSING)
    for key in needed:
        if key not in raw or (raw[key] is None and key not in _MAY_BE_NULL):
            raise InputError(f"{path} has no value for {key!r}: it is not a finished run's")
    return validate(_SUMMARY, raw, str(path))


def _check_rounds(folder: Path, rounds: tuple[RoundRow, ...], expected: int) -> None:
    path = folder / "rounds.jsonl"
    check_increase(path, rounds)
    check_last(path, rounds, expected)
