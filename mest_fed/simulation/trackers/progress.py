"""Observers of a run's progress, and how several are combined."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import getLogger
from typing import Protocol, runtime_checkable

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mest_fed.config import RunConfig
from mest_fed.rows import Row
from mest_fed.server.run_log import log_failure
from mest_fed.training import objective_of
from mest_fed.units import format_bytes, format_seconds

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


class Observers:
    """Several observers as one, called in their order.

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


_ROWS_SHOWN = 10


class RichDisplay:
    """A progress bar over a table of the last rounds.

    Parameters
    ----------
    console : Console
        Where to draw; without a terminal each round is one line.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[Row] = []
        self.bytes = 0
        self.clients = {"trained": 0, "failed": 0, "rejected": 0}
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeRemainingColumn(),
            console=console,
        )
        self._live = Live(console=console, refresh_per_second=8, transient=False)

    def begin(self, config: RunConfig, name: str, done: Sequence[Row]) -> None:
        """Draw the bar, and what a resumed run begins with."""
        for row in done:
            self._count(row)
        number = done[-1]["round"] if done else 0
        self._metric = objective_of(config.task.name, config.task.options).primary
        self._bar = self._progress.add_task(name, total=config.run.rounds, completed=number)
        if self.console.is_terminal:
            self._live.start()
            self._draw()

    def round_done(self, row: Row) -> None:
        """Add a round."""
        self._count(row)
        if self.console.is_terminal:
            self._progress.update(self._bar, completed=row["round"])
            self._draw()
        elif row["round"] > 0:
            self.console.print("  ".join(self._cells(row)), highlight=False)

    def end(self) -> None:
        """Leave the last state on the screen."""
        if self._live.is_started:
            self._live.stop()

    def _count(self, row: Row) -> None:
        self.rows.append(row)
        self.bytes += row["bytes_up"] + row["bytes_down"]
        for key in self.clients:
            self.clients[key] += row[key]

    def _draw(self) -> None:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in (
            "round",
            self._metric.name,
            "clients",
            "density",
            "traffic",
            "virtual time",
        ):
            table.add_column(heading, justify="right", min_width=9)
        for row in self.rows[-_ROWS_SHOWN:]:
            table.add_row(*self._cells(row))
        done = self.clients
        footer = (
            f"[dim]{done['trained']} trained, {done['failed']} failed, "
            f"{done['rejected']} rejected; {format_bytes(self.bytes)} sent in all[/dim]"
        )
        self._live.update(Group(self._progress, table, footer))

    def _cells(self, row: Row) -> list[str]:
        value = self._metric.format(row["metrics"].get(self._metric.name))
        lost = row["failed"] + row["rejected"]
        clients = f"{row['trained']} done" + (f", {lost} lost" if lost else "")
        traffic = format_bytes(row["bytes_up"] + row["bytes_down"])
        virtual = format_seconds(row["virtual_seconds"])
        return [str(row["round"]), value, clients, f"{row['density']:.3f}", traffic, virtual]
