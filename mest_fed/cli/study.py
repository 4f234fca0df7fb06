"""``mest-fed study``."""

import os
import shlex
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mest_fed.catalogue import PROTOCOLS, TABLE_FORMATS
from mest_fed.cli.app import NOTHING_TRAINED, WRONG_INPUT
from mest_fed.cli.interruption import Interruptible
from mest_fed.cli.options import as_typed
from mest_fed.cli.simulate import Workers, prepare_engine
from mest_fed.cli.studies.display import StudyConsole
from mest_fed.cli.tables import check_format
from mest_fed.errors import not_allowed
from mest_fed.system.files import check_folder
from mest_fed.units import number_of

if TYPE_CHECKING:
    from mest_fed.simulation.study.grid import Cell
    from mest_fed.simulation.study.pool import Job
    from mest_fed.simulation.study.study_folder import StudyFolder

#: Cells that run at a time at most: each is a process of its own.
MOST_PARALLEL = 64


def study(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="The study's TOML file, or the name of one that ships with mest-fed: quickstart. "
            f"Its protocol is one of {', '.join(PROTOCOLS)}.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the study; runs/studies/NAME if nothing is said."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            help="Do what is missing: runs that ended stay, those that broke off go on from their "
            "checkpoints, those that failed are tried again."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="List the cells and what each would cost. Nothing is started. Ends with status 2 "
            "if a cell would fail.",
        ),
    ] = False,
    parallel: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=MOST_PARALLEL,
            help="Cells that run at a time; the workers are divided among them.",
        ),
    ] = 1,
    cells: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Run these cells alone, such as 'method=dense,*'; may be repeated. The others "
            "are left as they are.",
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Where this machine has the data of all runs: data.path, which is no part of the "
            "study.",
        ),
    ] = "",
    reuse: Annotated[
        Path | None,
        typer.Option(
            metavar="RECORD",
            help="Folder of a record: runs that it has with the same configuration are not "
            "computed again.",
        ),
    ] = None,
    workers: Workers = None,
    address: Annotated[
        str | None,
        typer.Option("--ray-address", help="Ray cluster to join: auto or HOST:PORT."),
    ] = None,
    form: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help=f"Of the rows: {TABLE_FORMATS.allowed}."),
    ] = "parquet",
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the figures as SVG and PDF."),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Write a record of the finished study to docs/records/NAME, or to a folder: its "
            "file, configurations, rows, environment and tables.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Show no progress.")] = False,
) -> None:
    """Run a study: many simulations that differ in a few settings, compared on one page.

    Each cell is a run folder, which other commands read, too. Results go to results and rounds,
    a row a cell and a row a cell and round, and study.html compares them: means over seeds, paired
    differences, and which of these are beyond noise. Ends with status 3 if a cell failed, and with
    status 2 if --dry-run finds that one would.
    """
    with StudyConsole(quiet=quiet) as console, Interruptible(console.end) as stop:
        check_format(form)
        prepare_engine(workers)
        from mest_fed.simulation.study.study_file import read_study

        about = read_study(file)  # before libraries are loaded, which takes seconds
        from mest_fed.cli.studies.outputs import check_record, write_outputs, write_record
        from mest_fed.simulation.study.axes import BUDGET
        from mest_fed.simulation.study.checks import check_study
        from mest_fed.simulation.study.grid import expand
        from mest_fed.simulation.study.known import read_known
        from mest_fed.simulation.study.study_folder import StudyFolder, distinct_runs

        stop.loaded()
        if any(axis.key == BUDGET for axis in about.axes):
            console.say("working out what fits each budget", "dim")
        found = expand(about, os.path.abspath(data) if data else "")
        check_study(about, found)
        chosen = _chosen(found, cells)
        place = out or Path("runs/studies") / about.name
        known = None if reuse is None else read_known(reuse, about)
        folder = StudyFolder(place, about, found, known)
        folder.check(resume=resume or (dry_run and folder.is_studied))
        if record is not None:
            check_folder(check_record(record), "--record")
        if figures is not None:
            check_folder(figures, "--figures")
        typed = as_typed("resume", "dry_run")
        again = f"mest-fed study {shlex.quote(file)}{typed} --resume"
        if dry_run:
            from mest_fed.cli.studies.dry_run import print_cells

            if failing := print_cells(about, chosen, folder, console):
                typer.echo(f"{failing} of {number_of(len(chosen), 'cell')} would fail", err=True)
                sys.exit(WRONG_INPUT)
            return
        if known is not None:
            runs = distinct_runs(chosen)
            taken = sum(known.of(cell) is not None for cell in runs)
            console.say(f"{taken} of {number_of(len(runs), 'run')} are taken from {reuse}", "dim")
        with folder:
            stop.kept = lambda: f"stopped; go on with: {again}"
            try:
                _run(folder, chosen, (parallel, workers, address), console)
            except KeyboardInterrupt:
                _write_what_is_done(folder, form, console)
                raise
            console.say("writing the page", "dim")
            written = write_outputs(folder, form, figures)
            if record is not None:
                written |= write_record(folder, record, form)
        failed = [each for each in folder.results() if each.reason]
        console.say("")
        for what, path in written.items():
            console.say(f"{what}: {path}")
    if failed:
        for each in failed:
            typer.echo(f"{each.cell.id} failed: {each.reason}", err=True)
        typer.echo(f"{len(failed)} of {len(found)} cells failed; again: {again}", err=True)
        sys.exit(NOTHING_TRAINED)


def _chosen(cells: "Sequence[Cell]", patterns: Sequence[str] | None) -> "list[Cell]":
    """Return the cells that a pattern names, all if there is none, in the study's order."""
    if not patterns:
        return list(cells)
    for pattern in patterns:
        if not any(fnmatchcase(cell.id, pattern) for cell in cells):
            raise not_allowed("--cells", pattern, f"a pattern of cells such as {cells[0].id}")
    return [cell for cell in cells if any(fnmatchcase(cell.id, each) for each in patterns)]


def _run(
    folder: "StudyFolder",
    chosen: "Sequence[Cell]",
    engine: tuple[int, int | None, str | None],
    console: StudyConsole,
) -> None:
    """Do what is missing of the chosen cells."""
    from mest_fed.simulation.engine.machine import default_workers
    from mest_fed.simulation.study.pool import Pool
    from mest_fed.simulation.study.rows import metric_of
    from mest_fed.simulation.study.study_folder import STUDY_LOG, distinct_runs

    parallel, workers, address = engine
    runs = distinct_runs(chosen)
    jobs = [job for cell in runs if (job := _job(folder, cell)) is not None]
    if workers is None:
        workers = default_workers()
    parallel = min(parallel, len(jobs)) or 1
    console.begin(metric_of(folder.cells[0].config), len(jobs), len(runs) - len(jobs), parallel)

    def watch(run: str, event: dict[str, object]) -> None:
        console.event(run, event)
        if event["event"] in ("done", "failed"):
            folder.failed(run, str(event.get("reason", "")))
            for row in folder.rows_of(run):
                console.cell_ended(row)

    try:
        pool = Pool(parallel, workers, address, folder.path / STUDY_LOG)
        pool.run(jobs, watch)
    finally:
        console.end()


def _write_what_is_done(folder: "StudyFolder", form: str, console: StudyConsole) -> None:
    """Write rows and page of a study that is interrupted, if a cell of it is done."""
    from mest_fed.cli.studies.outputs import write_outputs
    from mest_fed.simulation.study.rows import DONE

    if any(each.status == DONE for each in folder.results()):
        console.say(f"page of what is done: {write_outputs(folder, form, None)['page']}")


def _job(folder: "StudyFolder", cell: "Cell") -> "Job | None":
    """Return what is to be done for a cell; None if its run has ended."""
    from mest_fed.config import to_flat
    from mest_fed.simulation.settings import DEFAULT_PRESET
    from mest_fed.simulation.study.pool import Job
    from mest_fed.simulation.study.study_folder import RunState

    state = folder.state(cell)
    if state in (RunState.ENDED, RunState.KNOWN):
        return None
    if state == RunState.BEGUN:
        folder.clear(cell)
    about = folder.study.about
    name = Path(about.config).stem if about.config else about.preset or DEFAULT_PRESET
    flat, resumed = to_flat(cell.config), state == RunState.RESUMABLE
    return Job(cell.run, name, folder.runs / cell.run, flat, resumed)
