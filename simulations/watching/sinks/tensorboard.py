"""TensorBoard event files in ``tensorboard/``."""

import time
from collections.abc import Sequence
from pathlib import Path

# tensorboardX has the event format in 0.7 MB. torch.utils.tensorboard would need TensorBoard itself
# (gRPC, a web server), and imports TensorFlow where that is installed. This writer is synchronous:
# the usual one has a thread, which a full disk kills, and whoever writes then waits for ever.
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import Summary

from mest_fed.config import RunConfig
from server.rows import Row
from simulations.watching.sinks.metrics import metrics


class TensorBoardSink:
    """Scalars by round; every start of the run writes a file of its own.

    The file of a resumed run tells TensorBoard to forget all that came before, and holds it anew:
    whatever stopped the run before, each round is shown once.

    Parameters
    ----------
    folder : Path
        The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: EventsWriter | None = None
        self._began = 0.0

    def begin(self, config: RunConfig, name: str, done: Sequence[Row]) -> None:
        """Open the file and write the rounds that are done."""
        self._folder.mkdir(exist_ok=True)
        earlier = sum(1 for _ in self._folder.iterdir())
        self._writer = EventsWriter(str(self._folder / "events"), f".{earlier}")
        # Points stand at the wall-clock time that the run has taken, its pauses left out.
        self._began = time.time() - (done[-1]["wall_seconds"] if done else 0.0)
        if earlier:
            restart = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=self._began, step=0, session_log=restart))
        for row in done:
            self._write(row)
        self._writer.flush()

    def round_done(self, row: Row) -> None:
        """Write a round, so that a TensorBoard beside the run shows it."""
        if self._writer is not None:
            self._write(row)
            self._writer.flush()

    def end(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, row: Row) -> None:
        assert self._writer is not None
        scalars = [Summary.Value(tag=k, simple_value=v) for k, v in metrics(row).items()]
        at = self._began + row["wall_seconds"]
        event = Event(wall_time=at, step=row["round"], summary=Summary(value=scalars))
        self._writer.write_event(event)
