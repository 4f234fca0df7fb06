"""What a study leaves: its rows as tables, its page, its figures, a record."""

import json
from collections.abc import Mapping
from pathlib import Path

from mest_fed.cli.tables import Rows, suffix_of, write_table
from mest_fed.errors import InputError
from mest_fed.simulation.report.figure_files import write_charts
from mest_fed.simulation.study.analysis import Analysis
from mest_fed.simulation.study.environment import Environment
from mest_fed.simulation.study.figures import draw_study
from mest_fed.simulation.study.page import render_study
from mest_fed.simulation.study.record import (
    CONFIGS,
    ENVIRONMENT,
    README,
    configurations,
    readme,
)
from mest_fed.simulation.study.rows import result_rows, round_rows
from mest_fed.simulation.study.study_file import protocol_of
from mest_fed.simulation.study.study_folder import (
    PAGE,
    RESULTS,
    ROUND_ROWS,
    StudyFolder,
)

#: Where records go that are named and not placed.
RECORDS = Path("docs/records")


def write_outputs(folder: StudyFolder, form: str, figures: Path | None) -> dict[str, Path]:
    """Write rows and page into the study's folder, and figures; return what is where.

    Raises
    ------
    InputError
        If a file cannot be written.
    """
    analysis, rounds = analysis_of(folder)
    written = write_rows(folder.path, form, analysis.rows, rounds)
    page = folder.path / PAGE
    _write(page, render_study(analysis, rounds, environment_of(folder)))
    if figures is not None:
        write_charts(draw_study(analysis, rounds, alone=True), figures)
        written["figures"] = figures
    return written | {"page": page}


def analysis_of(folder: StudyFolder) -> tuple[Analysis, Rows]:
    """Return a study's results so far, and the rows of its rounds."""
    study, results = folder.study, folder.results()
    rows = result_rows(results, protocol_of(study.about, study.source))
    return Analysis(study, rows), round_rows(results)


def environment_of(folder: StudyFolder) -> Environment:
    """Return where a study's rows come from: this process, and the record that they are from."""
    used = any(result.known is not None for result in folder.results())
    return Environment.here(folder.known.environments if folder.known and used else ())


def write_rows(place: Path, form: str, rows: Rows, rounds: Rows) -> dict[str, Path]:
    """Write the rows of cells and of rounds into a folder."""
    tables: Mapping[str, Rows] = {RESULTS: rows, ROUND_ROWS: rounds}
    written = {}
    for name, table in tables.items():
        written[name] = place / f"{name}{suffix_of(form)}"
        write_table(table, form, written[name])
    return written


def record_folder(name: str) -> Path:
    """Return where a record goes: a bare name beneath ``docs/records``."""
    return Path(name) if "/" in name else RECORDS / name


def check_record(name: str) -> Path:
    """Return where a record goes, if it can.

    Raises
    ------
    InputError
        If something else than a record is there.
    """
    place = record_folder(name)
    if place.exists() and (not place.is_dir() or not (place / ENVIRONMENT).exists()):
        if place.is_dir() and not any(place.iterdir()):
            return place
        raise InputError(f"--record {name}: {place} is no record; allowed: a new folder")
    return place


def write_record(folder: StudyFolder, name: str, form: str) -> dict[str, Path]:
    """Write a record of a study as it stands; a reading that was added to its page stays.

    Raises
    ------
    InputError
        If a file cannot be written.
    """
    place = check_record(name)
    analysis, rounds = analysis_of(folder)
    environment = environment_of(folder)
    try:
        (place / CONFIGS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--record {name} cannot be used: {error.strerror or error}") from None
    write_rows(place, form, analysis.rows, rounds)
    _write(place / f"{folder.study.name}.toml", folder.study.text)
    configs = configurations(folder.cells)
    for config, text in configs.items():
        _write(place / CONFIGS / config, text)
    for left in (place / CONFIGS).glob("*.toml"):
        if left.name not in configs:  # of a cell that the study had when it was recorded before
            left.unlink()
    _write(place / ENVIRONMENT, json.dumps(environment.as_table(), indent=2) + "\n")
    page = place / README
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    _write(page, readme(analysis, environment, before))
    return {"record": place}


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
