"""Replies of an exchange, read once."""

from collections.abc import Generator, Iterator

from flwr.app import Message


class ReplyStream(Iterator[Message]):
    """Replies in message order; clients run as these are read.

    Parameters
    ----------
    replies : generator of Message
        The replies.
    """

    def __init__(self, replies: Generator[Message, None, None]) -> None:
        self._replies = replies
        self._exhausted = False

    def __iter__(self) -> "ReplyStream":
        """Return the stream itself.

        Raises
        ------
        RuntimeError
            If it was read to its end before: an empty second reading would go unnoticed.
        """
        if self._exhausted:
            raise RuntimeError(
                "these replies were read already; FleetGrid(..., stream=False) gives lists"
            )
        return self

    def __next__(self) -> Message:
        """Return the next reply."""
        try:
            return next(self._replies)
        except StopIteration:
            self._exhausted = True
            raise

    def close(self) -> None:
        """Stop reading: the rest of the messages do not run."""
        self._replies.close()
