"""Bytes on the wire beside a payload: an instruction's round trip through a relay that counts.

    python benchmarks/edge_overhead.py

Takes ``{"tls", "payload", "repeats"}`` as JSON from standard input, and prints JSON.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_wire import Relay, make_certificates, open_link, open_server, payload_of

from mest_fed.link.messages import Instruction, InstructionKind


@dataclass(frozen=True)
class Passed:
    """Bytes that passed a relay, of both ways together.

    Parameters
    ----------
    begin : int
        Until the node was registered: connection, handshake, registration.
    down : list of int
        Of each instruction: wait for it, and fetch its object.
    up : list of int
        Of each report: upload its object, and report.
    """

    begin: int
    down: list[int]
    up: list[int]


def passed(*, tls: bool, payload: int, repeats: int) -> Passed:
    """Give a node some instructions, one after another, over one connection."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text) if tls else None
        if folder is not None:
            make_certificates(folder, ["node"])
        down, up = [], []
        with (
            open_server(folder) as server,
            Relay(server.port) as relay,
            open_link(folder, "node", relay.port) as link,
        ):
            link.register()
            begin = last = relay.passed
            (node,) = server.nodes()
            for number in range(repeats):
                weights = payload_of("server", number, payload)
                task = Instruction(f"task-{number}", InstructionKind.TRAIN, number)
                server.submit(node.id, task, {"weights": weights})
                instruction = link.wait()
                if instruction is None or link.fetch(instruction.objects["weights"]) != weights:
                    raise SystemExit("error: the node did not get what it was given")
                down.append(relay.passed - last)
                last = relay.passed
                update = payload_of("node", number, payload)
                if not link.report(instruction, {"update": update}, {"loss": 1.0}):
                    raise SystemExit("error: a report did not count")
                up.append(relay.passed - last)
                last = relay.passed
                (outcome,) = server.poll(10.0)
                if outcome.objects != {"update": update}:
                    raise SystemExit("error: the server did not get the update")
    return Passed(begin, down, up)


def main() -> None:
    """Count, and print."""
    print(json.dumps(asdict(passed(**json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
