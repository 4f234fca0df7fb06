"""``mest-fed run``."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mest_fed.cli.app import NOTHING_TRAINED
from mest_fed.cli.console import RunConsole
from mest_fed.cli.interruption import Interruptible
from mest_fed.cli.options import next_folder
from mest_fed.cli.simulate import Workers, prepare_engine
from mest_fed.schema import FailureKind, in_words
from mest_fed.strict_json import read_json
from mest_fed.units import format_bytes, format_seconds, number_of


def run(
    app_dir: Annotated[
        Path, typer.Argument(metavar="APP_DIR", help="Folder of a Flower app: its pyproject.toml.")
    ],
    fleet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML file of the devices, with sections fleet, behaviour, work and run; without "
            "it nodes have no device, and no time passes.",
        ),
    ] = None,
    run_config: Annotated[
        list[str] | None,
        typer.Option(
            "--run-config",
            "-c",
            metavar="'KEY=VALUE ...' | FILE",
            help="Replace values of the app's run configuration, as for flwr run; repeatable.",
        ),
    ] = None,
    workers: Workers = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; runs/APP if nothing is said, or the next free runs/APP-N."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the run; replaces run.seed of the fleet's file.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            "--address",
            help="Ray cluster to join: auto or HOST:PORT. The app's files go there by Ray.",
        ),
    ] = None,
    show_clients: Annotated[
        bool, typer.Option(help="Show what clients print; run.log has it in any case.")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="Hide the log of Flower's ServerApp.")] = False,
) -> None:
    """Run any Flower app on a simulated fleet of devices, and write a report.

    The app's ServerApp and ClientApp run unchanged, as in flwr run. In a pipe standard output is a
    table of the rounds, and what the ServerApp prints goes to standard error; with --quiet it is
    what the ServerApp prints.

    Ends with status 3 if no client gave a result, or metrics are not finite at the end.
    """
    with RunConsole(quiet=quiet) as seen, Interruptible(seen.end) as stop:
        seen.phase("loading libraries")
        prepare_engine(workers)
        from mest_fed.config.fleet import read_fleet
        from mest_fed.server.folder_names import SUMMARY
        from mest_fed.simulation.engine.machine import default_workers
        from mest_fed.simulation.flower_app.project import read_project
        from mest_fed.simulation.flower_app.run import AppRun
        from mest_fed.simulation.report import write_report
        from mest_fed.simulation.report.load import load_run

        stop.loaded()
        project = read_project(app_dir).with_overrides(run_config or [])
        devices = None if fleet is None else read_fleet(fleet)
        prepared = AppRun.of(project, devices, out or next_folder(project.name), seed=seed)
        if workers is None:
            workers = min(default_workers(), prepared.num_nodes)
        stop.kept = lambda: _kept(prepared.out)
        with _consoles(show_clients, quiet), seen.apart():
            folder = prepared.run(workers, address, watcher=seen)
        seen.phase("writing the report")
        report = write_report(folder)
        _say_result(seen, read_json(folder / SUMMARY, dict), report)
    summary = load_run(folder).summary
    for line in filter(None, (summary.warning, getattr(summary, "notice", None))):
        typer.echo(line, err=True)
    if summary.warning:
        sys.exit(NOTHING_TRAINED)


def _kept(folder: Path) -> str:
    """Say what an interrupted run has left."""
    if folder.exists():
        return f"stopped; what the run has logged so far is in {folder}"
    return "stopped; no client had a result; nothing was kept"


@contextmanager
def _consoles(show_clients: bool, quiet: bool) -> Iterator[None]:
    """Show on standard error what was asked for."""
    from mest_fed.server.flower_internals import FLOWER_CONSOLE, plain_console
    from mest_fed.server.run_log import CLIENT_LOG

    shown = logging.StreamHandler()
    clients, level = logging.getLogger(CLIENT_LOG), FLOWER_CONSOLE.level
    # Where a line moves, what goes to standard error is printed above it.
    before = FLOWER_CONSOLE.setStream(sys.stderr)
    plain_console()
    if show_clients:
        clients.addHandler(shown)
    if quiet:
        FLOWER_CONSOLE.setLevel(logging.ERROR)
    try:
        yield
    finally:
        clients.removeHandler(shown)
        FLOWER_CONSOLE.setLevel(level)
        if before is not None:
            FLOWER_CONSOLE.setStream(before)


def _say_result(seen: RunConsole, summary: Mapping[str, Any], report: Path) -> None:
    sent = summary["bytes_up"] + summary["bytes_down"]
    virtual = f"; {format_seconds(summary['virtual_seconds'])} of virtual time (modelled)"
    seen.say("")
    seen.say(
        f"{summary['app']}: {number_of(summary['rounds'], 'round')} on "
        f"{number_of(summary['nodes'], 'node')}; tasks: {in_words(summary['tasks']) or 'none'}",
        "bold",
    )
    for kind, count in summary["failures"].items():
        seen.say(f"  {count:,} {FailureKind(kind).status}: {FailureKind(kind).label}")
    seen.say(
        f"{format_bytes(sent)} sent{virtual if summary['tiers'] else ''}; the rounds took "
        f"{format_seconds(summary['wall_seconds'])}, the command {format_seconds(seen.elapsed)} "
        "(measured)"
    )
    seen.say(f"report: {report}")
