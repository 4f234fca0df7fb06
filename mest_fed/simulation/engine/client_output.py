"""What clients print and raise: caught where they run, written to the log of the run."""

import io
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

from mest_fed.server.flower_internals import FLOWER_CONSOLE
from mest_fed.server.run_log import CLIENT_LOG, RUN_LOG

log = logging.getLogger(RUN_LOG)
#: Gets what clients print, a record for each client that printed something, at level INFO.
client_log = logging.getLogger(CLIENT_LOG)

#: What a terminal takes for colours, such as Flower's log has.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
#: Characters that are kept of one client's part in one exchange, and of all clients in a run.
_MOST_OF_A_CLIENT = 16_384
_MOST_OF_A_RUN = 16 << 20
#: A client that raises something else each time shall not fill the disk.
_MOST_TRACEBACKS = 100


class Printed(NamedTuple):
    """A text of a client: what it printed, or the traceback of what it raised."""

    node_id: int
    text: str
    raised: bool = False


class _Text:
    """The beginning of what one client prints; the rest is counted."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = _MOST_OF_A_CLIENT
        self._dropped = 0

    def add(self, text: str) -> None:
        kept = text[: self._room]
        if kept:
            self._parts.append(kept)
            self._room -= len(kept)
        self._dropped += len(text) - len(kept)

    def __str__(self) -> str:
        more = f"\n(and {self._dropped} more characters)" if self._dropped else ""
        return "".join(self._parts) + more


class _Switch(io.TextIOBase):
    """A standard stream: what is written goes to the client that runs, else to the process's own.

    Log handlers that a client makes keep the stream that they find. Hence one object serves all
    clients of a process.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        self.outer: TextIO | None = None
        self.client: _Text | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what only the process's own stream has, such as ``buffer``."""
        if name == "outer" or self.outer is None:
            raise AttributeError(name)
        return getattr(self.outer, name)

    def write(self, text: str) -> int:
        """Write text."""
        if self.client is not None:
            self.client.add(text)
        elif self.outer is not None:
            self.outer.write(text)
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def flush(self) -> None:
        """Flush the process's own stream."""
        if self.client is None and self.outer is not None:
            self.outer.flush()

    def fileno(self) -> int:
        """Return the descriptor of the process's own stream: what goes there is not caught."""
        return io.TextIOBase.fileno(self) if self.outer is None else self.outer.fileno()


class OutputCapture:
    """Catches what clients of this process print, and what they write to Flower's log.

    Text that does not pass ``sys.stdout`` or ``sys.stderr``, such as that of child processes, is
    not caught.
    """

    def __init__(self) -> None:
        self._out, self._err = _Switch(), _Switch()

    @contextmanager
    def client(self) -> Iterator[_Text]:
        """Catch what is printed in the block."""
        text = _Text()
        before = sys.stdout, sys.stderr
        if before[0] is self._out:  # a client of a client: it has the streams already
            yield text
            return
        self._out.outer, self._err.outer = before
        self._out.client = self._err.client = text
        sys.stdout, sys.stderr = self._out, self._err
        stream = FLOWER_CONSOLE.stream
        FLOWER_CONSOLE.stream = self._err
        try:
            yield text
        finally:
            FLOWER_CONSOLE.stream = stream
            sys.stdout, sys.stderr = before
            self._out.client = self._err.client = None


def in_client() -> bool:
    """Whether a client runs in this process now."""
    return isinstance(sys.stdout, _Switch)


class ClientLog:
    """Writes what clients print and raise into the log of the run, each traceback once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._room = _MOST_OF_A_RUN

    def write(self, texts: Iterable[Printed]) -> None:
        """Write texts in the order given."""
        for node_id, text, raised in texts:
            if raised:
                self._write_traceback(node_id, text)
            elif self._room > 0:
                self._room -= len(text)
                client_log.info("node %d: %s", node_id, _COLOURS.sub("", text).rstrip())
                if self._room <= 0:
                    log.warning("clients print much: what they print from now on is not kept")

    def _write_traceback(self, node_id: int, text: str) -> None:
        if text not in self._seen and len(self._seen) < _MOST_TRACEBACKS:
            self._seen.add(text)
            log.warning("the client of node %d raised an error:\n%s", node_id, text.rstrip())
