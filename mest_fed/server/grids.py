"""What all grids here have alike: their run, the making of messages, and waiting for replies."""

import time
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from mest_fed.server.flower_internals import Run, claim_identity

#: Seconds between two looks for replies where time is real and a grid must be asked.
POLL_SECONDS = 0.1
#: Seconds that a grid blocks at once.
_LONGEST_WAIT = 1.0


class RunGrid(Grid):
    """A grid of one run.

    Attributes
    ----------
    others_may_come : bool
        Whether nodes come and go while it is open: if all that are there refuse to take part,
        others may not, or the same ones with another budget.
    """

    others_may_come: bool = False
    _run: Run

    def set_run(self, run: Run) -> None:
        """Set the run; messages made in this process belong to it from now on."""
        self._run = run
        claim_identity(run.run_id)

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message, as ``Message(...)`` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


def others_may_come(grid: Grid) -> bool:
    """Say whether nodes come and go while a grid is open; of Flower's own nothing is known."""
    return isinstance(grid, RunGrid) and grid.others_may_come


@runtime_checkable
class BlockingGrid(Protocol):
    """A grid that can block until there is a reply."""

    def await_reply(self, seconds: float) -> None:
        """Return as soon as a reply is there, after so many seconds at most."""


def await_reply(grid: Grid, seconds: float) -> None:
    """Wait until a grid may have a reply that it had not before, and no longer than this.

    Parameters
    ----------
    grid : Grid
        What was asked last; one that cannot block is asked again soon.
    seconds : float
        At most; may be infinite.
    """
    if isinstance(grid, BlockingGrid):
        grid.await_reply(min(_LONGEST_WAIT, seconds))
    else:
        time.sleep(min(POLL_SECONDS, seconds))


def replies_to(grid: Grid, awaited: set[str], end: float) -> Iterator[Message]:
    """Yield replies as they come, until all are there or it is too late.

    Parameters
    ----------
    grid : Grid
        What the messages were sent by.
    awaited : set of str
        Ids of the messages; what has its reply is taken out.
    end : float
        When it is too late, on the clock of :func:`time.monotonic`; may be infinite.
    """
    while awaited:
        replies = list(grid.pull_messages(awaited))
        awaited -= {reply.metadata.reply_to_message_id for reply in replies}
        yield from replies
        if (left := end - time.monotonic()) <= 0:
            return
        if awaited:
            await_reply(grid, left)
