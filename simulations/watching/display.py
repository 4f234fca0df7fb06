"""What a person sees while a fleet trains: one live panel, or plain lines without a terminal."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mest_fed.config import RunConfig
from mest_fed.units import format_bytes, format_seconds
from server.rows import Row

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
        for heading in ("round", "accuracy", "clients", "density", "traffic", "virtual time"):
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
        accuracy = "—" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        lost = row["failed"] + row["rejected"]
        clients = f"{row['trained']} done" + (f", {lost} lost" if lost else "")
        traffic = format_bytes(row["bytes_up"] + row["bytes_down"])
        virtual = format_seconds(row["virtual_seconds"])
        return [str(row["round"]), accuracy, clients, f"{row['density']:.3f}", traffic, virtual]
