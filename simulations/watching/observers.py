"""Who is told of a run's progress, and how a run tells several at once."""

from collections.abc import Sequence
from contextlib import suppress
from logging import getLogger
from typing import Protocol

from mest_fed.config import RunConfig
from server.rows import Row

log = getLogger(__name__)


class Observer(Protocol):
    """Told of a run's progress: a display, or a sink of its rows."""

    def begin(self, config: RunConfig, name: str, done: Sequence[Row]) -> None:
        """Start.

        Parameters
        ----------
        config : RunConfig
            What runs.
        name : str
            What the configuration is called.
        done : sequence of Row
            The rows of ``rounds.jsonl`` that a resumed run begins with; empty for a new one.
            Rounds that were logged after the checkpoint are not among them: they come again, with
            the same values but for wall-clock time.
        """

    def round_done(self, row: Row) -> None:
        """Take a round's row of ``rounds.jsonl``."""

    def end(self) -> None:
        """Stop; also after an interruption, and possibly before :meth:`begin`."""


class Observers:
    """Several observers as one, told in their order.

    Parameters
    ----------
    *observers : Observer
        Whom to tell.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def begin(self, config: RunConfig, name: str, done: Sequence[Row]) -> None:
        """Start all."""
        for observer in self._observers:
            observer.begin(config, name, done)

    def round_done(self, row: Row) -> None:
        """Give a round's row to all."""
        for observer in self._observers:
            observer.round_done(row)

    def end(self) -> None:
        """Stop all."""
        for observer in self._observers:
            observer.end()


class Expendable:
    """An observer whose failure costs one line of warning, not the run.

    Parameters
    ----------
    name : str
        What the warning calls it.
    observer : Observer
        Ended at its first exception and told nothing any more. What is no ``Exception``, such as
        Ctrl-C, passes.
    """

    def __init__(self, name: str, observer: Observer) -> None:
        self._name = name
        self._observer: Observer | None = observer

    def begin(self, config: RunConfig, name: str, done: Sequence[Row]) -> None:
        """Start it."""
        if self._observer is not None:
            try:
                self._observer.begin(config, name, done)
            except Exception as error:
                self._drop(error)

    def round_done(self, row: Row) -> None:
        """Give it a round's row."""
        if self._observer is not None:
            try:
                self._observer.round_done(row)
            except Exception as error:
                self._drop(error)

    def end(self) -> None:
        """Stop it."""
        if self._observer is not None:
            try:
                self._observer.end()
            except Exception as error:
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            with suppress(Exception):
                observer.end()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("%s stopped (%s); the run goes on without it", self._name, reason)
