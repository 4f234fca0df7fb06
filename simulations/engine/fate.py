"""Fate: what life does to simulated devices, as FleetGrid asks it."""

from typing import Protocol

from flwr.app import Message


class Fate(Protocol):
    """It may refuse an instruction and may spoil a reply.

    Within an exchange each of the first two methods is called once a message, in message order;
    but ``admits`` runs ahead of ``settle``, by a number that depends on the executor, so neither
    may change what the other returns.
    """

    def admits(self, instruction: Message) -> str | None:
        """Return why the device does not even begin, or None if it does."""

    def settle(self, instruction: Message, reply: Message) -> Message:
        """Return the reply that reaches the server: this one, or an error reply.

        The reply of a device that was not admitted is an error reply with the reason.
        """

    def end_of_exchange(self) -> None:
        """All messages of this exchange are settled, or its reader has stopped."""
