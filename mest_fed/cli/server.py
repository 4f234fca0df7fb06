"""``mest-fed server``: a run over the edge link, without Flower's SuperLink."""

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mest_fed.cli.app import NOTHING_TRAINED, needs
from mest_fed.cli.options import MoreRounds, Settings, as_typed, next_folder
from mest_fed.errors import InputError, not_allowed
from mest_fed.system.files import check_folder

if TYPE_CHECKING:
    from mest_fed.config import RunConfig
    from mest_fed.config.load import Scalar
    from mest_fed.link.server.opening import LinkSettings
    from mest_fed.run_rows.facts import Provenance

#: What nodes connect to, and where they enrol, if nothing is said.
LINK_PORT, ENROL_PORT = 9443, 9444


def server(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.toml]", help="A TOML file instead of a preset."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Preset to run.")] = None,
    settings: Settings = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of the edge link.")
    ] = f"0.0.0.0:{LINK_PORT}",
    certificates: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="As mest-fed certs new made it."),
    ] = None,
    enrol: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Give certificates there, to nodes with a token."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS, on loopback alone.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/PRESET if nothing is said.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, as it was set.")
    ] = False,
    rounds: MoreRounds = None,
) -> None:
    """Run a federation of lean nodes over the edge link, and write a report.

    Nodes are started with mest-fed node. The run begins when server.min_nodes of them are there.

    Exit status: 2 if an option, a file or a certificate is wrong; 3 if no node gave an update that
    the server accepted, or the run diverged; 130 after Ctrl-C or SIGTERM.
    """
    needs("server", "flwr", "pydantic")
    needs("edge", "grpc")
    # What goes wrong with an address, a file or a connection is a line of the server's own.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from mest_fed.config import from_flat, to_flat
    from mest_fed.server.folder_names import CONFIG
    from mest_fed.simulation.settings import resolve

    if resume and out is None:
        raise InputError("--resume needs --out; allowed: the folder of a run over the edge link")
    if rounds and (not resume or preset or file or settings):
        new = f"--set run.rounds={rounds}"
        raise InputError(
            f"--rounds {rounds} is for --resume --out FOLDER alone; allowed for a new run: {new}"
        )
    write: Callable[[], None] | None = None
    if resume and out is not None and preset is None and file is None:
        name, (config, write) = out.name, _of_folder(out, rounds or 0)
        if settings:
            name, config = resolve(None, out / CONFIG, settings)
    else:
        name, config = resolve(preset, file, settings or [])
    from mest_fed.link.server.opening import (  # libraries that take seconds to load
        LinkSettings,
        check_link,
    )

    link = LinkSettings(listen, certificates, enrol or "", insecure)
    if config.deployment.link:
        raise InputError(
            f"deployment.link = {config.deployment.link!r} is for flwr run; allowed: --listen"
        )
    folder = out or next_folder(name)
    where: dict[str, Scalar] = {"deployment.folder": str(folder), "deployment.resume": resume}
    config = from_flat(to_flat(config) | where)
    if folder.exists() and not folder.is_dir():
        raise not_allowed("--out", str(folder), "a folder")
    if resume and (settings or preset or file):
        _check_as_set(config, folder)
    if not resume and any(folder.glob("checkpoints/*")):
        raise not_allowed("--out", str(folder), "a folder without a run, or --resume beside it")
    check_folder(folder, "--out")
    check_link(link)
    _check_unused(folder)
    logging.getLogger("mest_fed.link").setLevel(logging.INFO)
    try:
        with _alike_lines(), _terminated_as_interrupted():
            summary = _serve(config, folder, link, write, _about(name, config))
    except KeyboardInterrupt:
        if any(folder.glob("checkpoints/*")):
            how = as_typed("preset", "settings", "out", "resume", "rounds")
            line = f"go on with: mest-fed server --resume --out {shlex.quote(str(folder))}{how}"
            typer.echo(line, err=True)
        raise
    if summary.warning:
        typer.echo(summary.warning, err=True)
        sys.exit(NOTHING_TRAINED)


@contextmanager
def _alike_lines() -> Iterator[None]:
    """Have all lines look alike: those of the run come by Flower's logger, others by ours."""
    from mest_fed.server.flower_internals import printed_by
    from mest_fed.server.run_log import LINE

    of_run, others = (logging.StreamHandler(sys.stderr) for _ in range(2))
    of_run.setFormatter(logging.Formatter(LINE))
    others.addFilter(lambda it: not it.name.startswith(("flwr", "mest_fed.server")))
    logging.basicConfig(level=logging.WARNING, format=LINE, handlers=[others])
    with printed_by(of_run):
        yield


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Have SIGTERM, as of a service that is stopped, end the run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not heard there
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_as_set(config: "RunConfig", folder: Path) -> None:
    """Refuse to go on with another run than the one in the folder."""
    from mest_fed.server.deployed import check_same
    from mest_fed.server.run_folder import RunFolder

    run = RunFolder(folder, ("--out", "--resume"))
    check_same(run.reopen(finished=True), config, folder, "--resume")


def _check_unused(folder: Path) -> None:
    """Refuse a folder that another process is in, before a port is opened."""
    from mest_fed.server.run_folder import RunFolder
    from mest_fed.system.folder_lock import is_held

    if is_held(folder):
        RunFolder(folder, ("--out", "--resume")).hold()  # which says who is in it


def _of_folder(folder: Path, more: int) -> "tuple[RunConfig, Callable[[], None] | None]":
    """Return the run in a folder with so many rounds more, and what writes them down, if any."""
    from mest_fed.server.run_folder import RunFolder
    from mest_fed.simulation.more_rounds import NewPlan

    run = RunFolder(folder, ("--out", "--resume"))
    config = run.reopen(finished=more > 0)
    plan, snapshot = NewPlan.of(config, run, more)
    if plan is None:
        return config, None

    def write() -> None:
        run.hold()
        try:
            plan.write(run, snapshot)
        finally:
            run.release()

    return plan.config, write


def _about(name: str, config: "RunConfig") -> "Provenance | None":
    """Return what the run's folder keeps of this command; None where no package reads machines."""
    try:
        from mest_fed.simulation.provenance import provenance_of
    except ModuleNotFoundError:
        return None
    return provenance_of(name, config)


def _serve(
    config: "RunConfig",
    folder: Path,
    link: "LinkSettings",
    write: Callable[[], None] | None,
    about: "Provenance | None",
) -> Any:
    from mest_fed.config import find_named, to_flat
    from mest_fed.link.server.grid import LinkGrid
    from mest_fed.link.server.lean_run import LeanRun, check_run
    from mest_fed.link.server.opening import open_link
    from mest_fed.process_tasks import PROCESS_TASKS
    from mest_fed.server.app import build_server_app
    from mest_fed.server.flower_internals import run_server_app
    from mest_fed.simulation.report import read_summary
    from mest_fed.task import Task

    find_named(config)
    flat, task = to_flat(config), Task(config)
    check_run(task)
    PROCESS_TASKS.put(flat, task)
    run = LeanRun(task)
    with open_link(link, run) as nodes:
        typer.echo(f"the edge link listens on port {nodes.port}; run folder: {folder}", err=True)
        if write is not None:
            write()  # as late as it can be: nothing keeps the run from going on now
        grid = LinkGrid(nodes, run, deadline=config.fleet.deadline)
        run_server_app(build_server_app(about=about), grid, run_config=flat)
    return read_summary(folder)
