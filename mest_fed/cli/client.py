"""``mest-fed client``."""

import os
import shutil
import socket
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mest_fed.cli.baseline import measure_baseline, measure_reserved
from mest_fed.cli.environment import node_environment
from mest_fed.cli.extras import needs
from mest_fed.cli.node_config import write_node_config
from mest_fed.cli.node_memory import MARGIN, MemoryWish
from mest_fed.cli.supervise import become_supervisor
from mest_fed.devices import load_profile
from mest_fed.errors import InputError, not_allowed
from mest_fed.memory.limit import limit_memory

_SUPERNODE = "flower-supernode"


def client(
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The SuperLink's address for nodes.")
    ],
    partition: Annotated[int, typer.Option(help="Which share of the data this device holds.")],
    device: Annotated[str, typer.Option(help="Profile name or path of a TOML file.")],
    insecure: Annotated[bool, typer.Option("--insecure", help="Connect without TLS.")] = False,
    root_certificates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file to know the SuperLink by.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="What training may add; the profile's if left out."),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="What all of the node may take; the system holds it."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help=f"Part of the limit left free; {MARGIN} if left out."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Of the node's ClientApp API; a free one if left out.")
    ] = None,
) -> None:
    """Run this machine as a device of a federation, within a memory limit or budget."""
    needs("client", "flwr", "pydantic")
    link = _link(superlink, insecure, root_certificates)
    if partition < 0:
        raise not_allowed("--partition", partition, "a whole number from 0")
    profile = load_profile(device)
    name = str(Path(device).resolve()) if device.endswith(".toml") else device
    config: dict[str, int | float | str] = {"partition-id": partition, "device": name}
    wish = MemoryWish.read(budget, memory_limit, margin)
    environment = node_environment()
    supernode = shutil.which(_SUPERNODE, path=environment["PATH"])
    if supernode is None:
        raise InputError(f"{_SUPERNODE} is not on the PATH; run: pip install 'mest-fed[client]'")
    local = ("--port", str(_port(port)))
    baseline = measure_baseline(environment)
    text = write_node_config(config | wish.node_config())
    command = [supernode, *link, *local, "--node-config", text]
    if wish.limit is None:
        wish.check_budget(profile, baseline)
        typer.echo(wish.budget_in_words(profile, baseline))
        become_supervisor(command, environment, None, "")
    wish.check_limit()
    with limit_memory(wish.limit, reserved=partial(measure_reserved, environment)) as held:
        typer.echo(wish.limit_in_words(held, baseline))
        become_supervisor(command, environment, held.confinement, str(memory_limit))


def _link(superlink: str, insecure: bool, certificates: Path | None) -> list[str]:
    """Return Flower's options for the connection."""
    host, _, port = superlink.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise not_allowed("--superlink", superlink, "HOST:PORT, such as 192.168.1.10:9092")
    if insecure == (certificates is not None):
        given = "both" if insecure else "neither"
        raise InputError(
            f"--insecure, --root-certificates: {given} of them is not allowed; "
            "allowed: either --insecure or --root-certificates FILE"
        )
    if certificates is None:
        return ["--superlink", superlink, "--insecure"]
    if not certificates.is_file() or not os.access(certificates, os.R_OK):
        raise not_allowed("--root-certificates", str(certificates), "a PEM file that can be read")
    return ["--superlink", superlink, "--root-certificates", str(certificates)]


def _port(port: int | None) -> int:
    if port is not None and not 0 < port < 2**16:
        raise not_allowed("--port", port, "1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise not_allowed("--port", port, f"one that is free ({error.strerror})") from None
        return int(probe.getsockname()[1])
