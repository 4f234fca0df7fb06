"""``mest-fed client``."""

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from zipfile import is_zipfile

import typer

from mest_fed.cli.app import needs
from mest_fed.cli.baseline import measure_baseline
from mest_fed.cli.environment import node_environment
from mest_fed.cli.node_config import write_node_config
from mest_fed.cli.node_memory import NodeMemory
from mest_fed.cli.superlink import Link, as_argument, wait_for_superlink
from mest_fed.cli.supervise import Job, become_supervisor
from mest_fed.devices import load_profile
from mest_fed.errors import InputError, not_allowed
from mest_fed.system.limits import limit_memory
from mest_fed.units import LAST_PORT

_SUPERNODE = "flower-supernode"
#: Options of Flower's node that are set here -> by which of ours.
_OURS = {
    "--superlink": "--superlink",
    "--insecure": "--insecure",
    "--root-certificates": "--root-certificates",
    "--auth-supernode-private-key": "--auth-key",
    "--port": "--port",
    "--node-config": "--partition, --data, --device, --budget and --memory-limit",
}


def client(
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The SuperLink's address; its port is 8000.")
    ],
    device: Annotated[str, typer.Option(help="Profile name or path of a TOML file.")],
    partition: Annotated[
        int | None, typer.Option(help="Which share of the run's data set this device holds.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where the run's data set is on this device; without --partition, the device's "
            "own examples: images by class, parquet, .npz, CSV or text.",
        ),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Connect without TLS.")] = False,
    root_certificates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM file to know the SuperLink by.")
    ] = None,
    auth_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="This device's private key (OpenSSH, ECDSA), registered with the SuperLink.",
        ),
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
        typer.Option(
            metavar="SHARE",
            help="Part of the limit left free; the run's memory.margin if left out.",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Of the node's ClientApp API; a free one if left out.")
    ] = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for a SuperLink, or a clock.")
    ] = 60.0,
    supernode: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTIONS]", help="Further options of flower-supernode."),
    ] = None,
) -> None:
    """Run this machine as a device of a federation, within a memory limit or budget.

    Exit status: 2 if an option, a file or a certificate is wrong, or the budget does not fit beside
    the node; 4 if no SuperLink answers, it refuses this device, or the clock is wrong; 1 if the
    node fails; 130 after Ctrl-C, 143 after SIGTERM.
    """
    needs("client", "flwr", "pydantic")
    link = Link.read(superlink, insecure, root_certificates, auth_key)
    place = _place(partition, data)
    further = _further(supernode or [])
    if not wait >= 0:
        raise not_allowed("--wait", wait, "a number of seconds from 0")
    profile = load_profile(device, "--device")
    name = str(Path(device).resolve()) if device.endswith(".toml") else device
    config: dict[str, int | float | str] = {**place, "device": name}
    limits = NodeMemory.read(budget, memory_limit, margin)
    environment = node_environment()
    program = shutil.which(_SUPERNODE, path=environment["PATH"])
    if program is None:
        raise InputError(f"{_SUPERNODE} is not on the PATH; run: pip install 'mest-fed[client]'")
    local = ("--port", str(_port(port)))
    wait_for_superlink(link, wait)  # before it measures, which takes up to a minute
    baseline = measure_baseline(environment)
    text = write_node_config(config | limits.node_config())
    command = [program, *link.options(), *local, "--node-config", text, *further]
    job = Job(command, as_argument(link), limit=str(memory_limit or ""))
    if limits.limit is None:
        limits.check_budget(profile, baseline)
        wait_for_superlink(link, wait)
        typer.echo(limits.budget_in_words(profile, baseline))
        become_supervisor(job, environment)
    limits.check_limit()
    with limit_memory(limits.limit, reserved=lambda: baseline.worker.reserved) as held:
        said = limits.limit_in_words(held, baseline)
        wait_for_superlink(link, wait)
        typer.echo(said)
        become_supervisor(replace(job, cgroup_limit=held.cgroup_limit), environment)


def _place(partition: int | None, data: Path | None) -> dict[str, int | float | str]:
    """Return what the node config says of this device's data."""
    if partition is None and data is None:
        raise InputError(
            "--partition, --data: neither of them is not allowed; allowed: --partition N of the "
            "run's data set, or --data PATH of this device's own examples, or both"
        )
    if partition is not None and partition < 0:
        raise not_allowed("--partition", partition, "a whole number from 0")
    place: dict[str, int | float | str] = {}
    if partition is not None:
        place["partition-id"] = partition
    if data is not None:
        place["data"] = str(_readable(data))
    return place


def _readable(data: Path) -> Path:
    """Refuse what cannot be examples, whoever reads them; which reader that is the run says."""
    path = data.expanduser()
    if not os.access(path, os.R_OK):  # also where a folder on the way is closed
        raise not_allowed("--data", str(data), "a file or folder that can be read")
    if path.is_dir():
        if not any(path.iterdir()):
            raise not_allowed("--data", str(data), "a folder that is not empty")
    elif path.stat().st_size == 0:
        raise not_allowed("--data", str(data), "a file that is not empty")
    elif path.suffix == ".npz" and not is_zipfile(path):
        raise not_allowed("--data", str(data), "an .npz file that is whole: this is no archive")
    return path.resolve()


def _further(options: list[str]) -> list[str]:
    """Check the options for Flower's node that stand after ``--``."""
    for option in options:
        name = option.partition("=")[0]
        if name in _OURS:
            raise InputError(f"{name} after -- is not allowed; allowed: {_OURS[name]} before --")
    return options


def _port(port: int | None) -> int:
    if port is not None and not 0 < port <= LAST_PORT:
        raise not_allowed("--port", port, f"1 to {LAST_PORT}")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise not_allowed("--port", port, f"one that is free ({error.strerror})") from None
        return int(listener.getsockname()[1])
