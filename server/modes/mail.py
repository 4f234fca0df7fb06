"""Instructions out, replies in as they arrive, in the time of the grid if it has one."""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid

from mest_fed.errors import MestFedError
from server.exchange import POLL_SECONDS


class OnItsWay(Protocol):
    """What a grid with a clock knows of an instruction whose reply has not arrived."""

    message_id: str
    start: float
    number: int


@runtime_checkable
class VirtualGrid(Protocol):
    """What a grid with a clock of its own offers beside Flower's methods.

    Its ``pull_messages`` lets time pass until the first of the replies arrives, if none has.

    Attributes
    ----------
    now : float
        Virtual seconds since the start of the run.
    """

    now: float

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies, as soon as there are any."""

    def wait_until(self, now: float) -> None:
        """Let time pass."""

    def push_again(self, message: Message, start: float, number: int) -> str:
        """Send what was on its way when a run was stopped, as it was sent then; return its id."""

    def in_flight(self) -> Sequence[OnItsWay]:
        """Return what is on its way."""


class Mail:
    """Messages of a strategy that waits for no one in particular.

    Parameters
    ----------
    grid : Grid
        Any. One that is a :class:`VirtualGrid` says what time it is; else it is real.
    deadline : float
        Real seconds after which a reply is too late. In virtual time the grid sees to that.

    Attributes
    ----------
    patience : float
        Seconds after which a reply no longer comes; a simulated device always answers.
    """

    def __init__(self, grid: Grid, deadline: float = math.inf) -> None:
        self._grid = grid
        self._virtual = grid if isinstance(grid, VirtualGrid) else None
        self.patience = deadline if self._virtual is None else math.inf

    @property
    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() if self._virtual is None else self._virtual.now

    def send(self, messages: Sequence[Message]) -> list[str | None]:
        """Send messages; return their ids, None (or empty) for those that could not be sent."""
        names: list[str | None] = list(self._grid.push_messages(messages))
        return names + [None] * (len(messages) - len(names))

    def send_again(self, message: Message, start: float, number: int) -> str | None:
        """Send what :meth:`on_its_way` told of; where time is real it begins anew."""
        if self._virtual is None:
            return self.send([message])[0]
        return self._virtual.push_again(message, start, number)

    def on_its_way(self) -> dict[str, tuple[float, int]]:
        """Return the start and the number of each message whose reply has not arrived.

        Nothing where time is real: that does not stop with a run.
        """
        flying = () if self._virtual is None else self._virtual.in_flight()
        return {flight.message_id: (flight.start, flight.number) for flight in flying}

    def wait(self, names: Sequence[str], until: float = math.inf) -> list[Message]:
        """Return replies to these messages as soon as there are any, or nothing at ``until``.

        Virtual time goes on to ``until``, if that is finite, before anything is returned.
        """
        if self._virtual is not None:
            if until < math.inf:
                self._virtual.wait_until(until)
                if self.now < until:
                    raise MestFedError("a grid whose devices take no time cannot wait for some")
                flying = self.on_its_way()
                names = [name for name in names if name not in flying]
            return list(self._virtual.pull_messages(names)) if names else []
        while names or self.now < until < math.inf:
            replies = list(self._grid.pull_messages(names)) if names else []
            if replies or self.now >= until:
                return replies
            time.sleep(min(POLL_SECONDS, until - self.now))
        return []
