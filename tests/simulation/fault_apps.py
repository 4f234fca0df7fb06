"""MEST's ClientApp, of which one client holds still, once, so that something can be done to it.

Worker processes load it. The folder that ``MEST_FAULTS`` names has the file ``held``, with the id
of the process, while and after a client held still; it goes on once there is the file ``go``.
"""

import os
import resource
import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import mest_fed.client.app
import mest_fed.task_data
from mest_fed.simulation.engine.shared_memory import SharedMemory

#: In which round.
HELD_ROUND = 2
#: How long it waits at most, so that a test that failed leaves nothing behind.
MOST_SECONDS = 60


class HeldApp(ClientApp):
    """The first client that trains in a round holds still, or finds the disk full."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Hold still if it is time to, then do what the client does."""
        if message.metadata.message_type == "train":
            server_round = int(message.content.config_records["mest"]["round"])
            if server_round == HELD_ROUND:
                _hold(Path(os.environ["MEST_FAULTS"]))
        return mest_fed.client.app.app(message, context)


app = HeldApp()


def _no_disk(*_: object) -> None:
    raise AssertionError("there is no such file on this machine")


if "MEST_ALONE" in os.environ:
    # As on a machine that shares neither a disk nor memory with the driver's.
    for name in ("load_data", "load_partitions"):
        setattr(mest_fed.task_data, name, _no_disk)
    SharedMemory.find = classmethod(lambda *_: None)


def _hold(folder: Path) -> None:
    own = folder / f"process-{os.getpid()}"
    own.write_text(str(os.getpid()), encoding="utf-8")
    try:
        os.link(own, folder / "held")  # whole at once, and only once
    except FileExistsError:
        return
    if "MEST_FULL_AT" in os.environ:
        # From now on no file of this process grows beyond that: as if the disk were full.
        most = int(os.environ["MEST_FULL_AT"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return
    end = time.monotonic() + MOST_SECONDS
    while not (folder / "go").exists() and time.monotonic() < end:
        time.sleep(0.05)
