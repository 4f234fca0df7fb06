"""Read and check the files of a run folder."""

import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mest_fed.errors import InputError
from mest_fed.run_rows.app import AppRoundRow
from mest_fed.run_rows.rounds import ClientRow, RoundRow
from mest_fed.schema import TaskStatus
from mest_fed.strict_json import parse_json

T = TypeVar("T")


def check_increase(path: Path, rounds: Sequence[RoundRow | AppRoundRow]) -> None:
    """Check that each round follows the one before: InputError if not."""
    for before, after in pairwise(row.round for row in rounds):
        if after <= before:
            raise InputError(f"{path}: round {after} follows round {before}; rounds must increase")
        if after > before + 1:
            raise InputError(f"{path}: round {after} follows round {before}; rows are missing")


def check_last(path: Path, rounds: Sequence[RoundRow | AppRoundRow], expected: int) -> None:
    """Check that the last round is the summary's: InputError if not."""
    last = rounds[-1].round if rounds else None
    if last != expected:
        found = "holds no round" if last is None else f"ends at round {last}"
        raise InputError(f"{path} {found}, summary.json says {expected}: rows are missing")


def check_tasks(
    folder: Path, tasks: Sequence[ClientRow], expected: Mapping[TaskStatus, int]
) -> None:
    """Compare the rows of the tasks with what the summary counted, if it did: InputError."""
    found = Counter(task.status for task in tasks)
    for status, count in expected.items():
        if found[status] != count:
            raise InputError(
                f"{folder / 'clients.jsonl'} holds {found[status]} tasks that ended as {status}, "
                f"summary.json says {count}: rows were lost or added"
            )


def read_lines(path: Path, adapter: TypeAdapter[T], *, whole: bool = False) -> Iterator[T]:
    """Read and check a file with a JSON object a line; ``whole``: of lines with an end alone.

    Raises
    ------
    InputError
        If the file is missing or a line is wrong; names it.
    """
    text = read_text(path)
    text = text.rpartition("\n")[0] if whole else text
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield validate(adapter, parse_object(line, where), where)


def read_text(path: Path) -> str:
    """Read a file of a run folder.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: not a run folder, or not a whole one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse an object; NaN and infinities, which a diverged loss gives, become null."""
    return parse_json(text, where, dict, infinite_as_null=True)


def validate(adapter: TypeAdapter[T], raw: object, where: str) -> T:
    """Check what JSON holds.

    Raises
    ------
    InputError
        If a value is missing or wrong; names it.
    """
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        raise InputError(f"{where}: {key!r} is missing")
    given = f"{key} = " if key else ""
    raise InputError(f"{where}: {given}{reprlib.repr(first['input'])}: {first['msg']}")
