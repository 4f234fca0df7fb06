"""Read and check a run folder."""

import json
import reprlib
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from mest_fed.errors import InputError
from simulations.report.schema import Kernels, RoundRow, Run, Summary, TaskRow

Row = TypeVar("Row")

_ROUND = TypeAdapter(RoundRow)
_TASK = TypeAdapter(TaskRow)
_SUMMARY = TypeAdapter(Summary)
_KERNELS = TypeAdapter(Kernels)
_MAY_BE_NULL = {"mutation", "final_accuracy", "final_client_accuracy"}


def load_run(folder: Path) -> Run:
    """Read ``config.toml``, ``summary.json``, the logs and, where there is one, ``kernels.json``.

    Raises
    ------
    InputError
        If the folder is not that of a finished run, or a file is missing or broken; names the
        file and, where there is one, the line.
    """
    if not folder.is_dir():
        raise InputError(f"run folder {folder} does not exist")
    config = _read_text(folder / "config.toml")
    try:
        tomllib.loads(config)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{folder / 'config.toml'}: {error}") from None
    summary = _read_summary(folder)
    rounds = tuple(_read_lines(folder / "rounds.jsonl", _ROUND))
    _check_rounds(folder, rounds, summary.rounds)
    tasks = tuple(_read_lines(folder / "clients.jsonl", _TASK))
    return Run(
        folder=folder,
        config=config,
        summary=summary,
        rounds=rounds,
        tasks=tasks,
        kernels=_read_kernels(folder),
    )


def _read_kernels(folder: Path) -> Kernels | None:
    path = folder / "kernels.json"
    if not path.exists():  # a run of an earlier version
        return None
    return _validate(_KERNELS, _parse_json(_read_text(path), str(path)), str(path))


def _read_summary(folder: Path) -> Summary:
    path = folder / "summary.json"
    if not path.exists():
        raise _unfinished(folder, f"{path} does not exist")
    raw = _parse_json(_read_text(path), str(path))
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected an object with the run's final values")
    for key in (field.name for field in fields(Summary)):
        if key not in raw or (raw[key] is None and key not in _MAY_BE_NULL):
            raise _unfinished(folder, f"{path} has no value for {key!r}")
    return _validate(_SUMMARY, raw, str(path))


def _check_rounds(folder: Path, rounds: tuple[RoundRow, ...], expected: int) -> None:
    path = folder / "rounds.jsonl"
    numbers = [row.round for row in rounds]
    for before, after in pairwise(numbers):
        if after <= before:
            raise InputError(f"{path}: round {after} follows round {before}; rounds must increase")
    last = numbers[-1] if numbers else None
    if last != expected:
        found = "holds no round" if last is None else f"ends at round {last}"
        raise _unfinished(folder, f"{path} {found}, summary.json says {expected}")


def _read_lines(path: Path, adapter: TypeAdapter[Row]) -> Iterator[Row]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _validate(adapter, _parse_json(line, where), where)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: not a run folder, or not a whole one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _parse_json(text: str, where: str) -> object:
    """Parse JSON; NaN and infinities, which a diverged loss gives, become null."""
    try:
        parsed: object = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from None
    return parsed


def _validate(adapter: TypeAdapter[Row], raw: object, where: str) -> Row:
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        raise InputError(f"{where}: {key!r} is missing")
    given = f"{key} = " if key else ""
    raise InputError(f"{where}: {given}{reprlib.repr(first['input'])}: {first['msg']}")


def _unfinished(folder: Path, why: str) -> InputError:
    command = f"mest-fed simulate --resume --out {shlex.quote(str(folder))}"
    return InputError(f"{why}: the run is unfinished; continue it with `{command}`")
