"""Fate: what life does to simulated devices, as FleetGrid asks it, in virtual time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from flwr.app import Message


@dataclass(frozen=True)
class Settled:
    """What came of an instruction on a device.

    Parameters
    ----------
    reply : Message
        What reaches the server: the client's reply, or an error reply.
    seconds : float
        Virtual seconds from the start of the instruction until the server has the reply, or knows
        that none will come.
    timing : object
        A record for the logs; picklable.
    keeps_state : bool
        Whether the device keeps what the client wrote into its state.
    busy_seconds : float
        Virtual seconds that the device works on it: more than ``seconds`` where the server did not
        wait for it. Until then its next instruction waits.
    """

    reply: Message
    seconds: float = 0.0
    timing: Any = None
    keeps_state: bool = True
    busy_seconds: float = 0.0


class Conditions(Protocol):
    """The circumstances of one instruction on one device: small, picklable, without state.

    Attributes
    ----------
    refusal : str or None
        Why the device does not even begin, or None if it does.
    number : int
        Number of the instruction, from which its draws come.
    """

    @property
    def refusal(self) -> str | None:
        """See above."""

    @property
    def number(self) -> int:
        """See above."""

    def at_least(self, instruction: Message) -> float:
        """Return seconds that will pass at least, whatever the client does."""

    def settle(self, instruction: Message, reply: Message) -> Settled:
        """Return what comes of a reply; the same wherever, and whenever, it is asked.

        The reply to an instruction that was refused is an error reply with the reason.
        """


class Fate(Protocol):
    """Draws the circumstances of each instruction, and keeps the virtual clock.

    Attributes
    ----------
    now : float
        Virtual seconds since the start of the run; the grid moves it.
    """

    now: float

    def meet(
        self, instruction: Message, *, start: float, within: float, number: int | None = None
    ) -> Conditions:
        """Draw the circumstances of an instruction.

        Parameters
        ----------
        instruction : Message
            To a node of the fleet.
        start : float
            Virtual time at which the device begins.
        within : float
            Seconds from ``start`` that the server waits at most; may be infinite.
        number : int, optional
            Number of an instruction that was met before, in a run that is resumed; by default the
            next one.
        """

    def note(self, settled: Settled) -> None:
        """Learn what came of an instruction; called once for each, in message order."""


@runtime_checkable
class Foresight(Protocol):
    """What a fate may know besides, for a server that selects by it."""

    def present_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return those nodes that are there now, in the order given."""

    def next_present(self, node_ids: Sequence[int]) -> float:
        """Return when the first of some absent nodes is worth asking again; may be infinite."""

    def train_seconds(self) -> Mapping[int, float]:
        """Return how long nodes took to train, as far as nobody has logged it yet."""
