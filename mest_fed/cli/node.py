"""``mest-fed node``: becomes the lean node, which holds none of what commands are made with."""

import os
import sys
from typing import Annotated

import typer

from mest_fed.cli.app import needs

_MODULE = "mest_fed.link.node"
#: Its options are its own.
OPTIONS = {"ignore_unknown_options": True, "help_option_names": []}


def node(
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTIONS]", help="See mest-fed node --help.")
    ] = None,
) -> None:
    """Take part in a run over the edge link: one process without torch or Flower."""
    needs("edge", "grpc")
    os.execv(sys.executable, [sys.executable, "-m", _MODULE, *(options or [])])
