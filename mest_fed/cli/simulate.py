"""``mest-fed simulate``."""

import logging
import os
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from mest_fed.catalogue import TRACKERS
from mest_fed.cli.app import NOTHING_TRAINED, needs
from mest_fed.cli.console import RunConsole
from mest_fed.cli.interruption import Interruptible
from mest_fed.cli.options import MoreRounds, as_typed, newest_run, next_folder, number_from
from mest_fed.errors import InputError
from mest_fed.run_rows.summary import Summary
from mest_fed.schema import LOSS, in_words
from mest_fed.units import format_bytes, format_seconds, number_of

if TYPE_CHECKING:
    from mest_fed.server.run_folder import RunFolder

#: Worker processes beyond which Ray would start none in any useful time.
MOST_WORKERS = 4096
#: What is not typed again to go on with a run: its folder has it, or the line names it.
_OF_THE_FOLDER = ("preset", "config", "settings", "out", "resume", "rounds", "dry_run")
#: An option of all commands that run a fleet.
Workers = Annotated[
    int | None,
    typer.Option(
        help="Ray worker processes, one core each; as many as there are cores and memory for "
        "if nothing is said; 0 runs in this process."
    ),
]


def simulate(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.toml]", help="A TOML file instead of a preset."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Preset to run; if nothing is said quickstart, or plain where --set names a model "
            "or data."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The same, by name.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder; runs/PRESET if nothing is said, or the next free runs/PRESET-N. For "
            "--resume the newest in runs that is not finished; with --rounds it may be finished."
        ),
    ] = None,
    workers: Workers = None,
    address: Annotated[
        str | None,
        typer.Option("--ray-address", "--address", help="Ray cluster to join: auto or HOST:PORT."),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOOL",
            help=f"Log with a tracker, too, in the run folder: {TRACKERS.allowed}; repeatable.",
        ),
    ] = None,
    client_timeout: Annotated[
        float,
        typer.Option(
            callback=number_from(1),
            metavar="SECONDS",
            help="Wall-clock time after which a client counts as hung and its worker is replaced.",
        ),
    ] = 3600.0,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    rounds: MoreRounds = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check what a run checks before its workers start, and say what it would be: "
            "plans, bytes, virtual time. Nothing is started or written.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option(help="Show no progress.")] = False,
) -> None:
    """Simulate a fleet of unlike devices that train federatedly, and write a report.

    Ends with status 3 if no device gave an update that the server accepted, or the run diverged:
    the loss of the model that it leaves is not finite.
    """
    with RunConsole(quiet=quiet) as console, Interruptible(console.end) as stop:
        prepare_engine(workers)
        from mest_fed.server.folder_names import CONFIG
        from mest_fed.simulation.settings import resolve

        if file is not None and config is not None:
            raise InputError("CONFIG.toml and --config name the same thing; allowed: one of them")
        config = file if config is None else config
        if preset is not None and config is not None:
            raise InputError("--preset and CONFIG.toml exclude each other; allowed: one of them")
        if resume and (preset or config or settings):
            raise InputError(
                f"--resume takes the run's own {CONFIG}; allowed beside it: --out, --rounds"
            )
        if rounds and not resume:
            new = f"--set run.rounds={rounds}"
            raise InputError(f"--rounds {rounds} is for --resume; allowed for a new run: {new}")
        # What is wrong with it is said before libraries are loaded, which takes seconds.
        name, resolved = (None, None) if resume else resolve(preset, config, settings or [])
        console.phase("loading libraries")
        from mest_fed.server.run_folder import RunFolder
        from mest_fed.simulation.engine.machine import default_workers
        from mest_fed.simulation.report import read_summary, write_report
        from mest_fed.simulation.rounds import Interrupted
        from mest_fed.simulation.simulate import open_run
        from mest_fed.simulation.trackers.progress import Observers
        from mest_fed.simulation.trackers.trackers import open_trackers

        stop.loaded()
        _quieten()
        folder = out or _folder(name, rounds, console)
        observer = Observers(*open_trackers(log or [], folder), console)
        name, more = name or folder.name, rounds or 0
        if resume:
            stop.kept = lambda: _kept(RunFolder(folder))
        run = open_run(name, resolved, folder, resume=resume, more=more, observer=observer)
        if dry_run:
            from mest_fed.cli.planning.forecast import RunForecast
            from mest_fed.cli.planning.forecast_text import print_forecast

            console.phase("working out what the run would be")
            forecast = RunForecast(run)
            console.end()
            print_forecast(forecast, workers, address)
            return
        stop.kept = lambda: _kept(run.folder)
        try:
            if workers is None:
                workers = default_workers()
            run.run(workers, address, patience=client_timeout)
        except Interrupted:
            raise KeyboardInterrupt from None
        stop.kept = lambda: f"stopped; write the report with: mest-fed report {quote(str(folder))}"
        console.phase("writing the report")
        report = write_report(folder)
        summary = read_summary(folder)
        _say_result(console, summary, report)
    if summary.warning:
        typer.echo(summary.warning, err=True)
        sys.exit(NOTHING_TRAINED)


def prepare_engine(workers: int | None) -> None:
    """Check that a fleet can be run with so many workers, and switch Flower's telemetry off.

    Raises
    ------
    InputError
        If the number is negative, or a library is missing.
    """
    libraries = ("flwr", "pydantic", "matplotlib", "jinja2")
    needs("simulation", *libraries, *(() if workers == 0 else ("ray",)))
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    if workers is not None and not 0 <= workers <= MOST_WORKERS:
        raise InputError(
            f"--workers = {workers} is not allowed; allowed: a whole number from 0 to "
            f"{MOST_WORKERS}"
        )


def _folder(preset: str | None, rounds: int | None, console: RunConsole) -> Path:
    """Choose the folder of a new run of a preset, or the run to go on with: None."""
    if preset is not None:
        return next_folder(preset)
    folder, count = newest_run(finished=rounds is not None)
    others = f", the newest of {count} such runs; --out takes another" if count > 1 else ""
    console.note(f"going on with {folder}{others}")
    return folder


def _kept(folder: "RunFolder") -> str:
    """Say what an interrupted run has left, and how it goes on as this command was typed."""
    if folder.resumable:
        return f"stopped; go on with: {folder.resume}{as_typed(*_OF_THE_FOLDER)}"
    if folder.has_checkpoint:
        return "interrupted before the run went on; its folder is as it was"
    return "interrupted before the first checkpoint; nothing was kept"


def _quieten() -> None:
    # Flower logs each step of its strategy loop; the display shows the same.
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("mest_fed.server").setLevel(logging.ERROR)


def _say_result(console: RunConsole, summary: Summary, report: Path) -> None:
    console.say("")
    if summary.stopped:
        console.say(f"stopped early: {summary.stopped}")
    if summary.kept == "best":
        console.say(f"the model kept is that of round {summary.kept_round}")
    metric = summary.primary_metric
    values = [f"{metric.name} {metric.format(summary.final_value)}"]
    if metric != LOSS:
        values.append(f"loss {LOSS.format(summary.final_metrics.get(LOSS.name))}")
    console.say(f"{', '.join(values)} at density {summary.achieved_density:.3f}", "bold")
    asked = f"of {number_of(summary.devices or 0, 'device')} {summary.devices_asked:,} were asked"
    console.say(f"{asked}; tasks: {in_words(summary.tasks) or 'none'}")
    for kind, count in summary.failures.items():
        console.say(f"  {count:,} {kind.status}: {kind.label}")
    sent = summary.bytes_up + summary.bytes_down
    took = f"the rounds took {format_seconds(summary.wall_seconds)}"
    if console.earlier_seconds:
        here = format_seconds(summary.wall_seconds - console.earlier_seconds)
        took += f", {here} of them in this command"
    console.say(
        f"{format_bytes(sent)} sent; {format_seconds(summary.virtual_seconds)} of virtual time "
        f"(modelled); {took}, the command {format_seconds(console.elapsed)} (measured)"
    )
    console.say(f"report: {report}")
