"""Tables: columns that fit a screen; for other programs rows as CSV or Parquet, and rounds."""

import io
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mest_fed.catalogue import TABLE_FORMATS
from mest_fed.cli.app import needs
from mest_fed.errors import InputError, not_allowed
from mest_fed.schema import LOSS, Metric, TaskStatus
from mest_fed.system.files import writing

Rows = Sequence[Mapping[str, Any]]

#: Types of the tasks of Flower apps that are counted.
APP_KINDS = ("train", "evaluate")
#: A row of a round in which nothing happened, for the names of the columns.
EMPTY_ROUND: Mapping[str, Any] = defaultdict(
    int, tasks={}, metrics={}, train_metrics={}, evaluate_metrics={}
)


def fill_table(
    table: Table, rows: Sequence[Mapping[str, str]], width: int, *, left: Sequence[str]
) -> None:
    """Fill a table, without the last columns where a screen is too narrow for them.

    Parameters
    ----------
    table : Table
        Empty.
    rows : sequence of mapping of str to str
        Heading -> cell, the same headings in each.
    width : int
        Of the screen.
    left : sequence of str
        Headings of columns that are aligned left.
    """
    room = width
    for heading in rows[0]:
        words = heading.split()
        lines = [line for row in rows for line in row[heading].split("\n")]
        room -= 2 + max(map(len, (*lines, *words)))
        if room < 0:
            break
        justify = "left" if heading in left else "right"
        table.add_column("\n".join(words), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*list(row.values())[: len(table.columns)])


def check_format(form: str, *others: str) -> str:
    """Return a format of tables, or one of the others, if the library that writes it is there.

    Raises
    ------
    InputError
        If it is not.
    """
    if form in others:
        return form
    try:
        TABLE_FORMATS.check(form)
    except InputError:
        allowed = ", ".join((*others, TABLE_FORMATS.allowed))
        raise not_allowed(TABLE_FORMATS.key, form, allowed) from None
    TABLE_FORMATS.find(form)
    needs("data", "pyarrow")
    return form


def suffix_of(form: str) -> str:
    """Return what a file of a format ends in: its name, or its attribute's in a reference."""
    return f".{form.rpartition(':')[2]}"


def write_table(rows: Rows, form: str, path: Path | None) -> None:
    """Write rows to a file, or CSV to standard output.

    Values that are tables themselves become columns with dotted names; a key that some rows lack
    is empty there.

    Parameters
    ----------
    rows : sequence of mapping
        Plain values by column.
    form : str
        A name of :data:`~mest_fed.catalogue.TABLE_FORMATS`, or a reference.
    path : Path or None
        The file; None writes to standard output, which Parquet cannot be written to.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    buffer = io.BytesIO()
    TABLE_FORMATS.build(form, _flat(rows), buffer)
    if path is None:
        try:
            sys.stdout.write(buffer.getvalue().decode())
        except UnicodeDecodeError:
            raise not_allowed("--out", "", f"a file, for --format {form}") from None
        return
    with writing(path):
        path.write_bytes(buffer.getvalue())


def as_csv(table: Any, file: io.BytesIO) -> None:
    """Write an Arrow table as CSV."""
    import pyarrow.csv

    pyarrow.csv.write_csv(table, file)


def as_parquet(table: Any, file: io.BytesIO) -> None:
    """Write an Arrow table as Parquet."""
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, file)


def _flat(rows: Rows) -> Any:
    """Return rows as an Arrow table without nested columns."""
    import pyarrow

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: _column([row.get(name) for row in rows]) for name in names})
    while any(pyarrow.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    kept = [field.name for field in table.schema if not pyarrow.types.is_nested(field.type)]
    return table.select(kept)


def _column(values: list[Any]) -> Any:
    """Return an Arrow array; whole numbers among fractions are fractions, too."""
    import pyarrow

    if any(isinstance(value, float) for value in values):
        values = [float(value) if isinstance(value, int) else value for value in values]
    return pyarrow.array(values)


def piped_row(row: Mapping[str, Any], metric: Metric | None, elapsed: float) -> dict[str, Any]:
    """Return what stands in a round's row of the piped table, by column.

    Parameters
    ----------
    row : mapping
        The round's row of ``rounds.jsonl``.
    metric : Metric or None
        The run's primary metric; None: the row is of a Flower app.
    elapsed : float
        Seconds since the command began.
    """
    ends = {str(status): row["tasks"].get(status, 0) for status in TaskStatus}
    spent = {key: row[key] for key in ("bytes_up", "bytes_down", "virtual_seconds")}
    spent["elapsed_seconds"] = round(elapsed, 3)
    learned: dict[str, Any]
    if metric is None:
        learned = {f"{kind}_metrics": _pairs(row[f"{kind}_metrics"]) for kind in APP_KINDS}
        return {"round": row["round"], **ends, **spent, **learned}
    learned = {each.name: row["metrics"].get(each.name) for each in (metric, LOSS)}
    learned |= {key: row[key] for key in ("train_loss", "density")}
    return {"round": row["round"], **learned, **ends, **spent}


def _pairs(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.6g}" for name, value in metrics.items())
