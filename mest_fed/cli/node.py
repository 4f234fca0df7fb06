"""``mest-fed node``: becomes the lean node, which holds none of what commands are made with."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT

NAME = "node"
_MODULE = "mest_fed.link.node"
#: What keeps the process small: no sentences of documentation, and an allocator that gives the
#: memory of a round back. What goes wrong with a connection is a line of the node's own, not of
#: gRPC's core.
_FLAGS, _ENVIRONMENT = ("-OO",), {**ALLOCATOR_ENVIRONMENT, "GRPC_VERBOSITY": "NONE"}
_WRONG_INPUT = 2


def become_node(options: Sequence[str]) -> NoReturn:
    """Replace this process by a lean node. It needs neither typer nor torch nor Flower."""
    missing = [name for name in ("grpc", "google.protobuf") if not _is_there(name)]
    if missing:
        print(
            f"error: {missing[0]} is not installed; run: pip install 'mest-fed[edge]'",
            file=sys.stderr,
        )
        sys.exit(_WRONG_INPUT)
    command = [sys.executable, *_FLAGS, "-m", _MODULE, *options]
    os.execve(sys.executable, command, {**_ENVIRONMENT, **os.environ})


def node() -> None:
    """Take part in a run over the edge link: one process without torch or Flower."""
    become_node(sys.argv[2:])


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of google, where there is none
        return False
