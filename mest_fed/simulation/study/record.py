"""A record: a study's file, configurations, rows and environment, and a page with its tables."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mest_fed.config import to_toml
from mest_fed.errors import InputError
from mest_fed.simulation.study.analysis import Analysis
from mest_fed.simulation.study.environment import Environment
from mest_fed.simulation.study.grid import Cell
from mest_fed.simulation.study.study_file import parse_study
from mest_fed.simulation.study.study_folder import RESULTS, distinct_runs
from mest_fed.simulation.study.tables import (
    TextTable,
    differences_table,
    failures_table,
    in_short,
    means_table,
)

README, ENVIRONMENT, CONFIGS = "README.md", "environment.json", "configurations"
#: Around what is made from the rows; what a person writes stands outside.
BEGIN, END = "<!-- tables: made from the rows -->", "<!-- end of tables -->"
_READING = (
    "## Reading\n\nWhat this shows, what it does not, and what surprised. Write it here: it stays "
    "when the record is written anew.\n"
)


def configurations(cells: Sequence[Cell]) -> dict[str, str]:
    """Return the files of the configurations, every key of each, by name."""
    return {f"{cell.run}.toml": to_toml(cell.studied) for cell in distinct_runs(cells)}


def readme(analysis: Analysis, environment: Environment, before: str = "") -> str:
    """Return the page of a record.

    Parameters
    ----------
    analysis : Analysis
        The study and its rows.
    environment : Environment
        Where they come from.
    before : str
        The page that is there; what stands outside of its tables is kept.
    """
    made = f"{BEGIN}\n{tables_of(analysis)}\n\n{facts_of(environment)}\n{END}\n"
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(f"{END}\n")
    if begin and end:
        return f"{head}{made}{tail}"
    name = analysis.study.name
    text = (
        f"# {name}\n\n{analysis.protocol.question}\n\n{made}\n{_READING}\n## Again\n\n"
        f"`mest-fed study {name}.toml --out runs/studies/{name}`, from this folder. "
        f"`{RESULTS}` has a row a cell, `rounds` one a cell and round, `{CONFIGS}` every key of "
        f"each run, `{ENVIRONMENT}` where it was computed.\n"
    )
    return text


def tables_of(analysis: Analysis) -> str:
    """Return what is made from a study's rows alone, as Markdown."""
    parts = [in_short(analysis), _titled("Means over seeds", means_table(analysis))]
    for pairing in analysis.pairings:
        title = f"Differences to {pairing.name}"
        parts.append(_titled(title, differences_table(analysis, pairing)))
    if (failures := failures_table(analysis)) is not None:
        parts.append(_titled("Not done", failures))
    return "\n\n".join(parts)


def _titled(title: str, table: TextTable) -> str:
    return f"## {title}\n\n{table.caption}.\n\n{table.as_markdown()}"


def facts_of(environment: Environment) -> str:
    """Return where the rows come from, as Markdown."""
    facts = [("Command", f"`{environment.command}`"), *environment.facts()]
    lines = [f"- {name}: {value}" for name, value in facts]
    return "## Where\n\n" + "\n".join(lines)


def read_record(place: Path) -> Analysis:
    """Read a record's study and rows.

    Raises
    ------
    InputError
        If it is none.
    """
    studies = sorted(place.glob("*.toml"))
    if len(studies) != 1:
        raise InputError(f"{place} is no record: it needs one study, and has {len(studies)}")
    study = studies[0]
    text = study.read_text(encoding="utf-8")
    (rows,) = read_tables(place, (RESULTS,))
    parsed = parse_study(study.stem, tomllib.loads(text), text, str(study), place)
    return Analysis(parsed, rows)


def read_tables(place: Path, names: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Read tables of a record by their names.

    Raises
    ------
    InputError
        If one is missing or damaged.
    """
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    readers = {".parquet": pyarrow.parquet.read_table, ".csv": pyarrow.csv.read_csv}
    tables = []
    for name in names:
        found = [path for suffix in readers if (path := place / f"{name}{suffix}").exists()]
        if not found:
            raise InputError(f"{place} is no record: {name}.parquet or {name}.csv is missing")
        try:
            tables.append(readers[found[0].suffix](found[0]).to_pylist())
        except (pyarrow.ArrowException, OSError) as error:
            line = str(error).splitlines()[0]
            raise InputError(f"{found[0]} cannot be read: {line}") from None
    return tables
