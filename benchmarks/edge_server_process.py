"""The server of edge.py's part ``server``, in a process of its own: prints lines of JSON.

    echo '{"folder": null, "nodes": 20, "rounds": 2, "payload": 100000}' \
        | python benchmarks/edge_server_process.py

It imports what ``mest-fed server`` holds, torch and Flower among it, and plays no run: all nodes
get the same bytes each round, and send as many. Seconds are of ``time.monotonic``.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from edge_wire import open_server, payload_of

import mest_fed.link.server.grid  # noqa: F401
import mest_fed.link.server.lean_run  # noqa: F401
import mest_fed.server.app  # noqa: F401 - all three are imported for their memory
from mest_fed.link.messages import Instruction, InstructionKind
from mest_fed.link.server.edge_server import EdgeServer
from mest_fed.link.server.objects import Blob
from mest_fed.system.proc import read_sizes

_LOOK_SECONDS, _LONGEST = 0.01, 600.0


def say(**fields: Any) -> None:
    """Print a line."""
    print(json.dumps({"at": time.monotonic(), **fields}), flush=True)


def play_round(server: EdgeServer, number: int, payload: int) -> dict[str, Any]:
    """Give all nodes an instruction, and take all updates."""
    begin = time.monotonic()
    blob = Blob(payload_of("server", number, payload))
    nodes = server.nodes()
    for node in nodes:
        name = f"{number}-{node.id}"
        instruction = Instruction(
            name, InstructionKind.TRAIN, number, objects={"weights": blob.ref}
        )
        server.submit(node.id, instruction, {"weights": blob})
    left, failures, received = len(nodes), 0, 0
    while left and time.monotonic() < begin + _LONGEST:
        for outcome in server.poll(1.0):
            left -= 1
            sizes = [len(data) for data in outcome.objects.values()]
            failures += outcome.failure is not None or sizes != [payload]
            received += sum(sizes)
    seconds = time.monotonic() - begin
    return {"seconds": seconds, "failures": failures + left, "received": received}


def main() -> None:
    """Serve a number of rounds to a number of nodes."""
    case = json.loads(sys.stdin.readline())
    folder = Path(case["folder"]) if case["folder"] else None
    with open_server(folder) as server:
        say(event="listens", port=server.port, rss=read_sizes()["VmRSS"])
        while len(server.nodes()) < case["nodes"]:
            time.sleep(_LOOK_SECONDS)
        say(event="registered", rss=read_sizes()["VmRSS"])
        for number in range(1, case["rounds"] + 1):
            say(event="round", **play_round(server, number, case["payload"]))
        say(event="done", rss=read_sizes()["VmRSS"], peak=read_sizes()["VmHWM"])
        sys.stdin.readline()  # nodes are ended before the server is


if __name__ == "__main__":
    main()
