"""How Ctrl-C and SIGTERM end a run's command: one line on standard error, and status 130."""

import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import typer

from mest_fed.cli.app import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def not_begun() -> str:
    """Say that an interruption has cost nothing."""
    return "interrupted before the run began; nothing was written"


class Interruptible:
    """Has an interruption end a command with a line, whatever the command was doing.

    Until :meth:`loaded` it ends at once: libraries swallow an exception that comes while they are
    imported, and the run would go on.

    Parameters
    ----------
    end : callable
        Takes away what moves on the screen; may be called twice.

    Attributes
    ----------
    kept : callable
        Gives the line; the command replaces it as it goes on.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self.kept: Callable[[], str] = not_begun

    def __enter__(self) -> "Interruptible":
        self._before = {each: signal.getsignal(each) for each in _SIGNALS}
        # A shell has what runs in the background ignore Ctrl-C.
        self._heard = [each for each in _SIGNALS if self._before[each] != signal.SIG_IGN]
        for each in self._heard:
            signal.signal(each, self._leave)
        return self

    def loaded(self) -> None:
        """Have an interruption raise :class:`KeyboardInterrupt` from now on."""
        for each in self._heard:
            signal.signal(each, signal.default_int_handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for each in self._heard:
            signal.signal(each, self._before[each])
        if isinstance(error, KeyboardInterrupt):
            self._say()
            sys.exit(INTERRUPTED)

    def _leave(self, *_: Any) -> None:
        self._say()
        os._exit(INTERRUPTED)

    def _say(self) -> None:
        self._end()
        typer.echo(self.kept(), err=True)
