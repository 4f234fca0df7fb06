"""Where a command that takes long speaks: to a person at a terminal, or to a pipe.

In a pipe standard output has rows alone, their columns apart by tabs; sentences go to standard
error.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import IO, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text


class Speaker:
    """Says sentences and writes rows, each where it belongs.

    Parameters
    ----------
    out, err : Console, optional
        Standard output and standard error.
    terminal : bool, optional
        Whether a person reads the output; by default where it is a terminal.
    quiet : bool
        Whether nothing is shown.
    clock : callable
        Gives seconds.
    """

    def __init__(
        self,
        out: Console | None = None,
        err: Console | None = None,
        *,
        terminal: bool | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out or Console(highlight=False, quiet=quiet)
        self._err = err or Console(stderr=True, highlight=False, quiet=quiet)
        # Colours that the environment asks for do not make a terminal of a pipe.
        self._terminal = self._out.file.isatty() if terminal is None else terminal
        self._quiet, self._clock, self._start = quiet, clock, clock()
        self._piped: IO[str] | None = None if self._terminal or quiet else self._out.file

    @property
    def elapsed(self) -> float:
        """Seconds since the command began."""
        return self._clock() - self._start

    @property
    def moves(self) -> bool:
        """Whether there may be something that moves: at a terminal, unless it is quiet."""
        return self._terminal and not self._quiet

    def say(self, text: str, style: str = "", *, indent: int = 0) -> None:
        """Say a sentence: to the person at the terminal, or on standard error."""
        line = Text(text, style=style)
        if self._terminal:
            self._out.print(Padding.indent(line, indent))
        else:
            self._err.print(Text(" " * indent) + line, soft_wrap=True)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Keep what a program prints out of the piped table: it goes to standard error."""
        with nullcontext() if self._piped is None else redirect_stdout(sys.stderr):
            yield

    def write_row(self, cells: Sequence[Any]) -> None:
        """Write a row to the pipe; a reader that has gone ends nothing."""
        if self._piped is None:
            return
        try:
            print(*("" if cell is None else cell for cell in cells), sep="\t", file=self._piped)
            self._piped.flush()
        except BrokenPipeError:
            self._piped = None
            with suppress(OSError, ValueError):  # else Python complains as it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.file.fileno())


@contextmanager
def said_meanwhile(text: str) -> Iterator[None]:
    """Say on standard error what takes a while: moving in a terminal, else as a line."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        print(text, file=sys.stderr, flush=True)
        yield
