"""``mest-fed server``: a run over the edge link, without Flower's SuperLink."""

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mest_fed.cli.app import NOTHING_TRAINED, needs
from mest_fed.cli.options import Settings, next_folder
from mest_fed.errors import InputError

if TYPE_CHECKING:
    from mest_fed.config import RunConfig
    from mest_fed.config.load import Scalar
    from mest_fed.link.server.edge_server import EdgeServer
    from mest_fed.link.server.lean_run import LeanRun

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
) -> None:
    """Run a federation of lean nodes over the edge link, and write a report.

    Nodes are started with mest-fed node. The run begins when server.min_nodes of them are there.

    Exit status: 2 if an option, a file or a certificate is wrong; 3 if no node gave an update that
    the server accepted, or the run diverged.
    """
    needs("server", "flwr", "pydantic")
    needs("edge", "grpc")
    from mest_fed.config import from_flat, to_flat
    from mest_fed.simulation.settings import resolve

    if resume and out is None:
        raise InputError("--resume needs --out; allowed: the folder of a run over the edge link")
    if resume and out is not None and preset is None and file is None:
        file = out / "config.toml"
    name, config = resolve(preset, file, settings or [])
    folder = out or next_folder(name)
    where: dict[str, Scalar] = {"deployment.folder": str(folder), "deployment.resume": resume}
    config = from_flat(to_flat(config) | where)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mest_fed.link").setLevel(logging.INFO)
    try:
        summary = _serve(config, folder, _Link(listen, certificates, enrol, insecure))
    except KeyboardInterrupt:
        if any(folder.glob("checkpoints/*")):
            how = _as_typed(listen=listen, certificates=certificates, enrol=enrol)
            how += " --insecure" if insecure else ""
            line = f"go on with: mest-fed server --resume --out {shlex.quote(str(folder))}{how}"
            typer.echo(line, err=True)
        raise
    if summary.warning:
        typer.echo(summary.warning, err=True)
        sys.exit(NOTHING_TRAINED)


class _Link:
    """Where nodes find the server, and how they are known."""

    def __init__(
        self, listen: str, certificates: Path | None, enrol: str | None, insecure: bool
    ) -> None:
        if insecure and (certificates or enrol):
            raise InputError("--insecure is without certificates; allowed: one of them")
        if not insecure and certificates is None:
            raise InputError(
                "an edge link needs --certificates FOLDER (mest-fed certs new), or --insecure on "
                "loopback"
            )
        self.listen, self.enrol, self.insecure = listen, enrol, insecure
        self.folder = certificates

    def open(self, run: "LeanRun") -> "EdgeServer":
        """Listen for nodes."""
        from mest_fed.link.server.edge_server import EdgeServer, ServerTls

        how: dict[str, Any] = {"describe": run.describe, "program": run.programs}
        if self.folder is None:
            typer.echo("mest-fed server: --insecure: nobody is asked who they are", err=True)
            return EdgeServer(self.listen, insecure=True, **how)
        names = ("server.pem", "server.key", "authority.pem")
        certificate, key, authority = (_read(self.folder / name) for name in names)
        if self.enrol:
            how |= {"enrolment_address": self.enrol, "enrol": _enroller(self.folder, authority)}
        return EdgeServer(self.listen, tls=ServerTls(certificate, key, authority), **how)


def _serve(config: "RunConfig", folder: Path, link: _Link) -> Any:
    from mest_fed.config import find_named, to_flat
    from mest_fed.link.server.grid import LinkGrid
    from mest_fed.link.server.lean_run import LeanRun
    from mest_fed.process_tasks import PROCESS_TASKS
    from mest_fed.server.app import build_server_app
    from mest_fed.server.flower_internals import run_server_app
    from mest_fed.simulation.report import read_summary
    from mest_fed.task import Task

    find_named(config)
    flat, task = to_flat(config), Task(config)
    PROCESS_TASKS.put(flat, task)
    run = LeanRun(task)
    with link.open(run) as nodes:
        typer.echo(f"the edge link listens on port {nodes.port}; run folder: {folder}", err=True)
        grid = LinkGrid(nodes, run, deadline=config.fleet.deadline or 0.0)
        run_server_app(build_server_app(), grid, run_config=flat)
    return read_summary(folder)


def _enroller(folder: Path, authority: bytes) -> Any:
    """Return what signs the requests of nodes that have a token."""
    from mest_fed.link.certificates import Authority, redeem_token, sign_request

    signer = Authority.load(folder)

    def enrol(token: str, request: bytes, name: str) -> tuple[bytes, bytes] | None:
        if not redeem_token(folder, token):
            return None
        return sign_request(signer, request, name), authority

    return enrol


def _as_typed(**options: object) -> str:
    given = {name: value for name, value in options.items() if value is not None}
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given.items())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
