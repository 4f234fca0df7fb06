"""A server of the edge link and very many nodes: seconds to register, seconds of rounds, memory."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_meter import Meter

HERE = Path(__file__).parent
#: Seconds between two looks at the server's memory: it is large, and its processor is wanted.
INTERVAL = 0.1


@dataclass(frozen=True)
class Crowd:
    """Nodes and what they do.

    Parameters
    ----------
    nodes, players : int
        Nodes, and the processes that play them.
    rounds, payload : int
        Rounds, and bytes that a node gets and sends in each.
    tls : bool
        Whether the link has mutual TLS, a certificate for each node.
    """

    nodes: int
    players: int
    rounds: int
    payload: int
    tls: bool


@dataclass(frozen=True)
class Served:
    """What was seen of a server.

    Parameters
    ----------
    register_seconds : float
        From the word to register until all nodes are registered.
    round_seconds : list of float
        Of each round.
    before, after, peak : int
        Resident bytes of the server's process: before the first node, after the last round, most.
    peak_pss : int
        Largest sample of its proportional set size.
    """

    register_seconds: float
    round_seconds: list[float]
    before: int
    after: int
    peak: int
    peak_pss: int


def serve(crowd: Crowd) -> Served:
    """Run a fresh server and its nodes.

    Raises
    ------
    SystemExit
        If a node or an update fails.
    """
    names = [f"node-{number}" for number in range(crowd.nodes)]
    with tempfile.TemporaryDirectory() as text, ExitStack() as stack:
        folder = None
        if crowd.tls:
            from edge_wire import make_certificates

            folder = text
            make_certificates(Path(text), names)
        case = {"folder": folder, "rounds": crowd.rounds, "payload": crowd.payload}
        server = stack.enter_context(process("edge_server_process.py"))
        tell(server, {**case, "nodes": crowd.nodes})
        listens = hear(server)
        meter = stack.enter_context(Meter(server.pid, INTERVAL))
        players = [stack.enter_context(process("edge_players.py")) for _ in range(crowd.players)]
        for number, player in enumerate(players):
            own = names[number :: crowd.players]
            tell(player, {**case, "port": listens["port"], "names": own})
        for player in players:
            answer(player, "ready")
        begin = time.monotonic()
        for player in players:
            tell(player, "go")
        registered = hear(server)
        rounds = [hear(server) for _ in range(crowd.rounds)]
        done = hear(server)
        for player in players:
            answer(player, "done")
    if failures := sum(each["failures"] for each in rounds):
        raise SystemExit(f"error: {failures} updates failed")
    return Served(
        registered["at"] - begin,
        [each["seconds"] for each in rounds],
        listens["rss"],
        done["rss"],
        done["peak"],
        meter.most("pss"),
    )


@contextmanager
def process(script: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script of this folder with pipes; end it in the end."""
    command = [sys.executable, str(HERE / script)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def tell(to: subprocess.Popen[str], what: Any) -> None:
    """Send a line of JSON."""
    assert to.stdin is not None
    to.stdin.write(json.dumps(what) + "\n")
    to.stdin.flush()


def line_of(of: subprocess.Popen[str]) -> str:
    """Return the next line of a process.

    Raises
    ------
    SystemExit
        If it has ended.
    """
    assert of.stdout is not None
    line = of.stdout.readline()
    if not line:
        raise SystemExit("error: a process of the benchmark ended before its time")
    return line.strip()


def hear(of: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next line of JSON."""
    found: dict[str, Any] = json.loads(line_of(of))
    return found


def answer(of: subprocess.Popen[str], wanted: str) -> None:
    """Wait for a word.

    Raises
    ------
    SystemExit
        If another one comes.
    """
    if (line := line_of(of)) != wanted:
        raise SystemExit(f"error: nodes say {line!r} instead of {wanted!r}")
