"""The report's figures as files of their own, for papers and slides."""

from collections.abc import Sequence
from pathlib import Path

from mest_fed.errors import InputError
from mest_fed.run_rows.row import Row
from mest_fed.simulation.report.app_run import app_charts
from mest_fed.simulation.report.figures import draw_charts
from mest_fed.simulation.report.figures.style import Chart, house_style
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.runs import AppRun

#: Formats, and the metadata that would differ from one writing to the next.
_FORMATS: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_figures(run_folder: Path, place: Path) -> list[Row]:
    """Write each figure of a finished run as SVG and as PDF.

    Parameters
    ----------
    run_folder : Path
        The run.
    place : Path
        Folder for the files; made where it is not there. Files of the same names are replaced.

    Returns
    -------
    list of dict
        A row for each figure: its ``name``, which the files begin with, ``title``, ``basis`` and
        ``caption``.

    Raises
    ------
    InputError
        If the folder does not hold a finished run, or a file cannot be written.
    """
    run = load_run(run_folder)
    charts = app_charts(run) if isinstance(run, AppRun) else draw_charts(run)
    return write_charts([chart for chart in charts.values() if chart is not None], place)


def write_charts(drawn: Sequence[Chart], place: Path) -> list[Row]:
    """Write charts as SVG and as PDF; see :func:`write_figures`."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        for chart in drawn:
            _write(chart, place)
    except OSError as error:
        raise InputError(f"--figures {place} cannot be used: {error.strerror or error}") from None
    return [
        {
            "name": chart.key,
            "title": chart.title,
            "basis": ", ".join(chart.basis),
            "caption": chart.caption,
        }
        for chart in drawn
    ]


def _write(chart: Chart, place: Path) -> None:
    with house_style():
        for form, dates in _FORMATS.items():
            metadata = {"Title": chart.title} | dates
            chart.figure.savefig(place / f"{chart.key}.{form}", format=form, metadata=metadata)
