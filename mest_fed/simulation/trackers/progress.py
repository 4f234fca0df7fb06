"""Observers of a run's progress, and how several are combined."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import getLogger
from typing import Protocol, runtime_checkable

from mest_fed.config import RunConfig
from mest_fed.run_rows.row import Row
from mest_fed.server.run_log import log_failure

log = getLogger(__name__)


@runtime_checkable
class Observer(Protocol):
    """Receives a run's progress: a display, or a tracker of its rows."""

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


@runtime_checkable
class Watcher(Protocol):
    """What an observer may have beside: it sees what goes on between the rounds."""

    def phase(self, text: str) -> None:
        """Take what begins now, for people."""

    def note(self, text: str) -> None:
        """Take a sentence that a person should read."""

    def task_ended(self, kind: str) -> None:
        """Take the type of a message, ``train`` or ``evaluate``, whose reply is there."""

    def tasks_done(self, rows: Sequence[Row]) -> None:
        """Take a round's rows of ``clients.jsonl``, before the row of the round."""


class Observers:
    """Several observers as one, called in their order; those that are watchers watch, too.

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

    def phase(self, text: str) -> None:
        """Tell the watchers what begins now."""
        for watcher in self._watchers():
            watcher.phase(text)

    def note(self, text: str) -> None:
        """Tell the watchers what a person should read."""
        for watcher in self._watchers():
            watcher.note(text)

    def task_ended(self, kind: str) -> None:
        """Tell the watchers that a task has ended."""
        for watcher in self._watchers():
            watcher.task_ended(kind)

    def tasks_done(self, rows: Sequence[Row]) -> None:
        """Give the rows of a round's tasks to the watchers."""
        for watcher in self._watchers():
            watcher.tasks_done(rows)

    def _watchers(self) -> list[Watcher]:
        return [each for each in self._observers if isinstance(each, Watcher)]


class FaultTolerantTracker:
    """An observer whose failure costs one line of warning, not the run.

    Parameters
    ----------
    name : str
        What the warning calls it.
    observer : Observer
        Ended at its first exception and not called again. What is no ``Exception``, such as
        Ctrl-C, passes.
    """

    def __init__(self, name: str, observer: Observer) -> None:
        self._name = name
        self._observer: Observer | None = observer

    def begin(self, config: RunConfig, name: str, done: Sequence[Row]) -> None:
        """Start it."""
        self._call(lambda observer: observer.begin(config, name, done))

    def round_done(self, row: Row) -> None:
        """Give it a round's row."""
        self._call(lambda observer: observer.round_done(row))

    def end(self) -> None:
        """Stop it."""
        self._call(lambda observer: observer.end())

    def _call(self, method: Callable[[Observer], None]) -> None:
        if self._observer is not None:
            try:
                method(self._observer)
            except Exception as error:  # another tool's code may raise anything
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            with suppress(Exception):  # it has failed already, which the warning says
                observer.end()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("%s stopped (%s); the run goes on without it", self._name, reason)
        log_failure(self._name, error)
