"""A user's script: registers things, and runs a configuration that names them on two workers."""

import sys
from pathlib import Path

import own_things

from mest_fed.catalogue import MODELS, SELECTORS
from mest_fed.simulation.settings import resolve
from mest_fed.simulation.simulate import open_run

MODELS.register("own-net")(own_things.net)


@SELECTORS.register("own-selection")
class Mine(own_things.FirstOnes):
    """The nodes of the lowest numbers."""


if __name__ == "__main__":
    own = ["model.name=own-net", "server.selection=own-selection"]
    _, config = resolve(None, Path(__file__).parent / "own.toml", own)
    open_run("tiny", config, Path(sys.argv[1]), resume=False).run(2)
