"""Instructions out, replies in as they arrive, in the time of the grid if it has one."""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid

#: Seconds between two looks for replies where time is real.
POLL_SECONDS = 0.1


@runtime_checkable
class VirtualGrid(Protocol):
    """What a grid with a clock of its own offers beside Flower's methods.

    Attributes
    ----------
    now : float
        Virtual seconds since the start of the run.
    """

    now: float

    def pull_until(self, message_ids: Iterable[str], until: float) -> Sequence[Message]:
        """Return the replies to these messages that have arrived by ``now``.

        If none has, time goes on to the next arrival, but no further than ``until``.
        """

    def push_again(self, message: Message, start: float, number: int) -> str:
        """Send a message of a run that was stopped, as it was sent then; return its id.

        The device begins at ``start`` and meets the circumstances that it met then. Time may have
        gone on since.
        """

    def number_of(self, message_id: str) -> int:
        """Return the number under which the circumstances of a message were drawn."""


class Mail:
    """Messages of a strategy that waits for no one in particular.

    Parameters
    ----------
    grid : Grid
        Any. One that is a :class:`VirtualGrid` says what time it is; else it is real.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._virtual = grid if isinstance(grid, VirtualGrid) else None

    @property
    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() if self._virtual is None else self._virtual.now

    @property
    def patience(self) -> float:
        """Seconds after which a reply no longer comes.

        Where time is real it is the limit that Flower's own strategies take by default; a simulated
        device always answers.
        """
        return 3600.0 if self._virtual is None else math.inf

    def send(self, messages: Sequence[Message]) -> list[str | None]:
        """Send messages; return their ids, None for those that could not be sent."""
        names: list[str | None] = list(self._grid.push_messages(messages))
        return names + [None] * (len(messages) - len(names))

    def send_again(self, message: Message, start: float, number: int | None) -> str | None:
        """Send a message of a run that was stopped; return its id."""
        if self._virtual is None or number is None:
            return self.send([message])[0]
        return self._virtual.push_again(message, start, number)

    def number_of(self, name: str) -> int | None:
        """Return what :meth:`send_again` needs to know of a message; None where time is real."""
        return None if self._virtual is None else self._virtual.number_of(name)

    def wait(self, names: Sequence[str], until: float = math.inf) -> Sequence[Message]:
        """Return replies to these messages as soon as there are any, or nothing at ``until``."""
        if self._virtual is not None:
            return self._virtual.pull_until(names, until)
        while names or self.now < until < math.inf:
            replies = list(self._grid.pull_messages(names)) if names else []
            if replies or self.now >= until:
                return replies
            time.sleep(min(POLL_SECONDS, until - self.now))
        return []
