"""``mest-fed node``: a lean node of the edge link, in one process without torch or Flower.

Its command line is the standard library's: what other commands use takes more memory than a node.
"""

import argparse
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

from mest_fed.errors import InputError, MestFedError, RefusedError, not_allowed
from mest_fed.link.addresses import check_address
from mest_fed.link.messages import NodeDescription
from mest_fed.link.node.board import board_of, profiles
from mest_fed.link.node.conditions import ALLOWED, Conditions
from mest_fed.link.node.data import check_place
from mest_fed.link.node.identity import node_tls
from mest_fed.link.node.runner import NodeRunner, NodeSetup
from mest_fed.link.node.store import NodeFolder
from mest_fed.link.node.transport import NodeLink, Patience
from mest_fed.link.protocol import Refusal, check_name
from mest_fed.runtime.native_table import module
from mest_fed.system.limits import MARGIN, left_for_training, limit_memory
from mest_fed.system.proc import resident_bytes
from mest_fed.units import parse_bytes

#: How a node ends that is told to.
_KEPT = "no round waits for this node; it takes part again when it is started"
FAILED, WRONG_INPUT, REFUSED, INTERRUPTED, TERMINATED = 1, 2, 4, 130, 143


class _Parser(argparse.ArgumentParser):
    """Gives wrong options as one line, as all commands do."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message}; see: mest-fed node --help")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = _Parser(
        prog="mest-fed node",
        description="Take part in a run over the edge link: one process without torch or Flower.",
        epilog="Exit status: 2 if an option, a file or a certificate is wrong, or the budget fits "
        "no plan; 4 if the server does not take this node, or is gone for too long; 130 after "
        "Ctrl-C, 143 after SIGTERM.",
        allow_abbrev=False,
    )
    add = found.add_argument
    add("--link", metavar="HOST:PORT", required=True, help="The server's edge link.")
    add("--data", metavar="PATH", required=True, help="This device's examples: .npz, a folder of "
        "images by class, or file.py:function=PATH.")  # fmt: skip
    add("--state", metavar="FOLDER", default="~/.mest-fed-node", help="What the node keeps: its "
        "key, its masks, its open reply (default: %(default)s).")  # fmt: skip
    add("--device", default="auto", help="A profile's name; auto asks the board (default).")
    add("--partition", type=int, metavar="N", help="Which share of the run's data the examples "
        "are; left out, they are the device's own.")  # fmt: skip
    add("--memory-limit", metavar="BYTES", help="What the whole process may take; the system "
        "holds it, and the rest is the budget.")  # fmt: skip
    add("--budget", metavar="BYTES", help="What training may add; the profile's if left out.")
    add("--threads", type=int, default=1, metavar="N", help="Cores to compute with (default: 1).")
    add("--train-when", default=None, metavar="CONDITIONS", help=f"Train only so: {ALLOWED}.")
    add("--name", default=None, help="The node's name where no certificate gives one; the host's "
        "if left out.")  # fmt: skip
    add("--certificates", metavar="FOLDER", help="node.pem, node.key and authority.pem, as "
        "mest-fed certs node wrote them; left out, those that --enrol got.")  # fmt: skip
    add("--enrol", metavar="HOST:PORT", help="Get a certificate there, once, with --token.")
    add("--token", default=os.environ.get("MEST_TOKEN"), help="Of mest-fed certs token; left out, "
        "the variable MEST_TOKEN, which the list of processes does not show.")  # fmt: skip
    add("--authority", metavar="FILE", help="authority.pem, beside --enrol.")
    add("--insecure", action="store_true", help="Without TLS, on loopback alone.")
    add("--give-up", type=float, metavar="SECONDS", default=float("inf"),
        help="End if the server is gone for so long; never if left out.")  # fmt: skip
    return found


def run(arguments: list[str] | None = None) -> None:
    """Run a node.

    Raises
    ------
    InputError, RefusedError
        As the command's help says.
    """
    options = parser().parse_args(arguments)
    _check_texts(options)
    if options.insecure:
        print(
            "mest-fed node: --insecure: without TLS, names are not proved and nothing is encrypted",
            file=sys.stderr,
        )
    setup = _setup(options)
    module()  # a node that cannot train takes no part
    folder = NodeFolder(Path(options.state).expanduser())
    folder.claim()
    name = socket.gethostname().split(".")[0] or "node" if options.name is None else options.name
    try:
        check_name("--name", name)
        node = NodeDescription(
            name=name,
            profile_name=_profile(options.device, setup),
            memory_limit_bytes=setup.memory_limit,
            partition=options.partition,
        )
    except Refusal as refusal:
        raise InputError(str(refusal)) from None
    check_place(options.data)
    patience, stop = Patience(altogether=options.give_up), _Stop()
    tls = None if options.insecure else node_tls(options, folder, name, patience)
    link = NodeLink(options.link, node, tls=tls, insecure=options.insecure, patience=patience)
    with link:
        runner = NodeRunner(link, node, setup, folder)
        if setup.memory_limit:
            with limit_memory(setup.memory_limit) as held:
                logging.getLogger("mest_fed.node").info("memory held by %s", held.kind)
                runner.run(stop)
        else:
            runner.run(stop)


class _Stop:
    """Ends the process at SIGTERM. It tells the server, so that no round waits for it."""

    def __init__(self) -> None:
        signal.signal(signal.SIGTERM, self._end)

    def __call__(self) -> bool:
        return False

    def _end(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        raise SystemExit(TERMINATED)


def _check_texts(options: argparse.Namespace) -> None:
    """Refuse an empty text, which a path would take for the current folder, and what is no address.

    Raises
    ------
    InputError
        Which option it is.
    """
    for name, value in vars(options).items():
        if value == "":
            raise not_allowed(f"--{name.replace('_', '-')}", "", "a text that is not empty")
    check_address(options.link, insecure=options.insecure, key="--link", least_port=1)
    if options.enrol:
        check_address(options.enrol, insecure=False, key="--enrol", least_port=1)


def _setup(options: argparse.Namespace) -> NodeSetup:
    if options.budget and options.memory_limit:
        raise InputError("--budget and --memory-limit exclude each other; allowed: one of them")
    if not 1 <= options.threads <= (os.cpu_count() or 1):
        allowed = f"1 to {os.cpu_count()}, the cores of this machine"
        raise not_allowed("--threads", options.threads, allowed)
    if options.partition is not None and options.partition < 0:
        raise not_allowed("--partition", options.partition, "a whole number from 0")
    if not options.give_up > 0:
        raise not_allowed("--give-up", options.give_up, "a number of seconds above 0")
    budget = parse_bytes(options.budget, "--budget") if options.budget else 0
    limit = parse_bytes(options.memory_limit, "--memory-limit") if options.memory_limit else 0
    if limit:  # before the system holds the process to it, and kills it
        left_for_training(limit, resident_bytes(), MARGIN, "--memory-limit")
    return NodeSetup(
        options.data,
        budget,
        limit,
        options.threads,
        Conditions.read(options.train_when or ""),
        alone=True,
    )


def _profile(device: str, setup: NodeSetup) -> str:
    """Return the profile's name; empty where the board is unknown, and a budget is given."""
    if device != "auto":
        if device not in profiles() and not device.endswith(".toml"):
            raise not_allowed("--device", device, f"auto, {', '.join(profiles())}")
        return device
    found = board_of()
    if found is None and not (setup.budget or setup.memory_limit):
        raise InputError(
            "--device = 'auto' finds no profile, since the system does not say which board this is;"
            " allowed: a profile's name, such as rpi-4 (mest-fed devices lists them), or "
            "--memory-limit BYTES or --budget BYTES beside auto"
        )
    return found or ""


def main() -> None:
    """Run the command; what is wrong is one line on standard error."""
    form = "%(asctime)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        run()
    except KeyboardInterrupt:
        print(f"interrupted; {_KEPT}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as ended:
        if ended.code == TERMINATED:
            print(f"stopped by SIGTERM; {_KEPT}", file=sys.stderr)
        raise
    except MestFedError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        wrong = isinstance(error, InputError)
        sys.exit(WRONG_INPUT if wrong else REFUSED if isinstance(error, RefusedError) else FAILED)
