"""Make and renew certificates and keys for a home network: the server's and the devices'."""

import math
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.request import getproxies, proxy_bypass

import typer
from rich.console import Console
from rich.table import Table

from mest_fed.cli.app import needs
from mest_fed.cli.environment import LOOPBACK
from mest_fed.cli.server import ENROL_PORT, LINK_PORT
from mest_fed.cli.tables import fill_table
from mest_fed.errors import InputError, not_allowed
from mest_fed.units import number_of

if TYPE_CHECKING:
    from mest_fed.cli.certificate_folder import Entry

Folder = Annotated[Path, typer.Argument(help="The folder that `mest-fed certs new` makes.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="NAME_OR_IP",
        help="How devices reach the server; repeatable. Loopback is always added.",
    ),
]
#: Of Flower's HTTP API, where nothing else is said (1.41 and 1.42).
PORT = 8000
#: The name of the connection in Flower's config.toml, in the lines that are printed.
CONNECTION = "home"
#: A token is valid for a year at most.
_MOST_HOURS = 24 * 366
#: Letters of a fingerprint that are shown on a screen; all of them to another program.
_SHOWN = 23


def new(
    folder: Annotated[Path, typer.Argument(help="Where the files go; made if it is missing.")],
    host: Hosts = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there; devices need files anew.")
    ] = False,
) -> None:
    """Make an authority, and a certificate for the server.

    The authority is valid for 10 years, the server's certificate for 825 days.
    """
    _needs()
    from mest_fed.cli.certificate_folder import SERVER, SERVER_KEY, make_authority
    from mest_fed.link.certificates import AUTHORITY, AUTHORITY_KEY

    if not host:
        raise InputError(
            "--host is missing; allowed: the name or IP address by which devices know this "
            "machine, such as --host 192.168.1.10; it may be given several times"
        )
    make_authority(folder, host, force=force)
    root = folder.resolve()
    files = {"ca-certfile": AUTHORITY, "certfile": SERVER, "keyfile": SERVER_KEY}
    options = [part for name, file in files.items() for part in (f"--ssl-{name}", root / file)]
    _say(
        f"{folder}: {AUTHORITY}, {AUTHORITY_KEY}, {SERVER}, {SERVER_KEY}",
        f"{AUTHORITY_KEY} signs for all: it stays on this machine, and nobody else may read it.",
        "",
        "For lean nodes, start the server, and give each device a token:",
        _line("mest-fed", "server", "--certificates", folder)
        + f" --enrol 0.0.0.0:{ENROL_PORT} --preset quickstart",
        _line("mest-fed", "certs", "token", folder),
        f"Then, on the device, with a copy of {AUTHORITY}:",
        f"{_lean_node(host[0])} --enrol {_bracketed(host[0])}:{ENROL_PORT} --token TOKEN "
        f"--authority {AUTHORITY}",
        "",
        "For Flower's nodes, start Flower's server:",
        _line("flower-superlink", "--host", "0.0.0.0", "--port", PORT, *options)
        + " --enable-supernode-auth --database superlink.db",
        "",
        "Tell Flower's commands where it is, in ~/.flwr/config.toml:",
        f"[superlink.{CONNECTION}]",
        f'address = "127.0.0.1:{PORT}"',
        f'root-certificates = "{root / AUTHORITY}"',
        "",
        f"Then, for each of Flower's nodes: {_line('mest-fed', 'certs', 'node', folder, 'NAME')}",
    )
    proxies = getproxies()
    if any(map(proxies.get, ("http", "https", "all"))) and not proxy_bypass("127.0.0.1"):
        _warn(
            "this shell's proxy would be asked for the server's own calls on this machine, and "
            f"they fail; first: export NO_PROXY={','.join(LOOPBACK)}"
        )


def node(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The device's name, such as pi-1.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace its keys; they are to be registered anew.")
    ] = False,
) -> None:
    """Make the certificate and keys of one device, and say what to do with them.

    Its folder is FOLDER/nodes/NAME. The OpenSSH keys are for Flower's node authentication, the
    certificate is for the edge link.
    """
    _needs()
    from mest_fed.cli.certificate_folder import (
        FLOWER_KEY,
        FLOWER_PUBLIC,
        NODE,
        NODE_KEY,
        add_node,
        entries,
    )
    from mest_fed.link.certificates import AUTHORITY

    made = add_node(folder, name, force=force)
    found = entries(folder)
    hosts = [entry.names[0] for entry in found if entry.what == "server"]
    others = sum(entry.what == "node" for entry in found) - 1
    host = hosts[0] if hosts else "HOST"
    server = f"{_bracketed(host)}:{PORT}"
    register = ("flwr", "supernode", "register", made.resolve() / FLOWER_PUBLIC, CONNECTION)
    _say(
        f"{made}: {AUTHORITY}, {FLOWER_KEY}, {FLOWER_PUBLIC}, {NODE}, {NODE_KEY}",
        "",
        f"As a lean node: copy {AUTHORITY}, {NODE} and {NODE_KEY} onto the device; there, in the "
        "folder with them:",
        f"{_lean_node(host)} --certificates .",
        "",
        f"As Flower's node: copy {AUTHORITY} and {FLOWER_KEY} onto the device, and register its "
        "key with Flower's server, once:",
        _line(*register),
        "Then, on the device, in the folder with the two files (each device has a partition of its "
        "own):",
        _line("mest-fed", "client", "--superlink", server, "--root-certificates", AUTHORITY)
        + f" --auth-key {FLOWER_KEY} --partition {others} --device rpi-4",
    )


def renew(
    folder: Folder,
    host: Hosts = None,
    force: Annotated[
        bool, typer.Option("--force", help="Renew those, too, that are valid for long.")
    ] = False,
) -> None:
    """Renew what expires within 30 days, or another authority has signed; keys stay.

    With --host the server's certificate is made anew for these hosts alone.
    """
    _needs()
    from mest_fed.cli import certificate_folder

    written = certificate_folder.renew(folder, host or (), force=force)
    for path in written:
        typer.echo(f"renewed: {path}")
    if not written:
        typer.echo("nothing is due; --force renews all the same")
    if any(path.parent == folder for path in written):
        typer.echo(
            "start the server anew, so that it shows its new certificate; devices keep theirs"
        )
    if any(path.parent != folder for path in written):
        typer.echo(
            f"copy what is renewed in {folder / 'nodes'} onto its device, and start the node anew; "
            "keys, and what is registered, stay as they are"
        )
    _warn(*_warnings(certificate_folder.entries(folder)))


def show(folder: Folder) -> None:
    """List certificates and open tokens: for whom, until when; warn of what expires soon.

    Nodes that got their certificate with a token stand as enrolled.
    """
    _needs()
    from mest_fed.cli.certificate_folder import entries
    from mest_fed.link.tokens import valid_tokens

    found = entries(folder)
    rows = [_row(entry) for entry in found]
    rows += [
        {
            "what": "token",
            "for": "a new device",
            "valid until": f"{end:%Y-%m-%d %H:%M} UTC",
            "SHA-256 fingerprint": "",
        }
        for end in valid_tokens(folder)
    ]
    console = Console()
    if console.is_terminal:
        shown = [
            row
            | {"for": row["for"].replace(", ", "\n")}  # a host on each line
            | {"SHA-256 fingerprint": row["SHA-256 fingerprint"][:_SHOWN]}
            for row in rows
        ]
        table = Table(title=f"{folder}", title_justify="left", box=None, header_style="bold")
        fill_table(table, shown, console.width, left=tuple(rows[0]))
        console.print(table)
    else:  # another program reads it
        typer.echo("\n".join("\t".join(line) for line in (rows[0], *(it.values() for it in rows))))
    _warn(*_warnings(found))


def token(
    folder: Folder,
    hours: Annotated[float, typer.Option(help="How long it is valid.")] = 24.0,
) -> None:
    """Print a token with which one new device may enrol, once; the folder keeps its digest."""
    _needs()
    from mest_fed.link.certificates import Authority
    from mest_fed.link.tokens import add_token, make_token

    if not (math.isfinite(hours) and 0 < hours <= _MOST_HOURS):
        raise not_allowed("--hours", hours, f"a number above 0, up to {_MOST_HOURS}")
    Authority.load(folder)  # what could not sign enrols no device
    text = make_token()
    end = add_token(folder, text, hours)
    typer.echo(text)
    typer.echo(f"valid until {end:%Y-%m-%d %H:%M} UTC, for one device, once", err=True)


def refuse(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The device's, as `mest-fed certs show` has it.")],
    undo: Annotated[bool, typer.Option("--undo", help="Take it again.")] = False,
) -> None:
    """Refuse one device from now on: its certificates take no part, whoever has copies of them.

    A server that runs with this folder knows it at the device's next call. Of Flower's nodes
    `flwr supernode unregister` removes the key.
    """
    _needs()
    from mest_fed.cli import certificate_folder

    count = number_of(certificate_folder.refuse(folder, name, undo=undo), "certificate")
    typer.echo(f"{'taken again' if undo else 'refused'}: {name} ({count})")


COMMANDS: tuple[Callable[..., None], ...] = (new, node, renew, refuse, show, token)


def _needs() -> None:
    needs("client", "cryptography", "filelock")


def _row(entry: "Entry") -> dict[str, str]:
    digits = entry.fingerprint.upper()
    return {
        "what": "refused" if entry.refused else entry.what,
        "for": ", ".join(entry.names),
        "valid until": f"{entry.end:%Y-%m-%d}",
        "SHA-256 fingerprint": ":".join(digits[at : at + 2] for at in range(0, len(digits), 2)),
    }


def _warn(*lines: str) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def _warnings(found: list["Entry"]) -> Iterator[str]:
    folder = found[0].path.parent
    for entry in found:
        way = f"mest-fed certs renew {folder}"
        if entry.refused:
            continue
        if entry.what == "enrolled":
            way = "the device enrols anew, with a token of mest-fed certs token"
        if entry.what == "authority":
            way = f"mest-fed certs new {folder} --host HOST --force, then {way}"
        if not entry.ours:
            yield f"{entry.path} was signed by another authority; {way}"
        elif entry.is_due:
            when = "has expired" if entry.days < 0 else f"expires in {entry.days} days"
            yield f"{entry.path} {when} ({entry.end:%Y-%m-%d}); {way}"


#: What a device needs that no profile names; a board's own profile says it, too.
_LIMIT = ("--memory-limit", "200MB")


def _lean_node(host: str) -> str:
    """Return the beginning of a device's command."""
    link = f"{_bracketed(host)}:{LINK_PORT}"
    return _line("mest-fed", "node", "--link", link, "--data", "mine.npz", *_LIMIT)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _line(*words: object) -> str:
    return shlex.join(str(word) for word in words)


def _say(*lines: str) -> None:
    typer.echo("\n".join(lines))
