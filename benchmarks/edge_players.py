"""Nodes of edge.py's part ``server``: threads of one process, with the transport of a node alone.

A line of JSON comes in, ``{"port", "folder", "names", "rounds", "payload"}``. All links are made,
``ready`` is printed, and at the next line all nodes register at once. A node fetches what it is
given, and sends an update.
"""

import json
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from edge_wire import open_link, payload_of

from mest_fed.link.node.transport import NodeLink

_STACK = 512 << 10


def play(link: NodeLink, name: str, case: dict[str, Any]) -> None:
    """Take part in all rounds."""
    link.register()
    for number in range(1, case["rounds"] + 1):
        instruction = None
        while instruction is None:
            instruction = link.wait()
        weights = link.fetch(instruction.objects["weights"])
        if len(weights) != case["payload"]:
            raise SystemExit("error: what was fetched has another length")
        update = payload_of(name, number, case["payload"])
        if not link.report(instruction, {"update": update}, {"loss": 1.0}):
            raise SystemExit("error: a report did not count")


def main() -> None:
    """Play the nodes."""
    case = json.loads(sys.stdin.readline())
    folder = Path(case["folder"]) if case["folder"] else None
    links = {name: open_link(folder, name, case["port"]) for name in case["names"]}
    failed = threading.Event()

    def one(name: str) -> None:
        try:
            play(links[name], name, case)
        except BaseException:
            traceback.print_exc()
            failed.set()

    threading.stack_size(_STACK)
    threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in links]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("failed" if failed.is_set() else "done", flush=True)


if __name__ == "__main__":
    main()
