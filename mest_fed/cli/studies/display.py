"""What a person sees while a study goes: a table that moves in a terminal, rows in a pipe.

Elsewhere than in a terminal, standard output has a header and a row for each cell that has ended,
their columns apart by tabs, and nothing else; sentences go to standard error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mest_fed.cli.speaker import Speaker
from mest_fed.schema import Metric
from mest_fed.units import format_bytes, format_seconds, number_of

Row = Mapping[str, Any]
_PER_SECOND = 4
#: What a cell's row in a pipe has of its row in ``results``, beside its name and status.
_PIPED = ("final", "peak_bytes", "bytes_up", "bytes_down", "virtual_seconds", "wall_seconds")


@dataclass
class _Running:
    """A run in progress."""

    since: float
    doing: str = "starting"
    rounds: int = 0
    round: int = 0
    value: float | None = None

    @property
    def share(self) -> float:
        """How much of it is done."""
        return self.round / self.rounds if self.rounds else 0.0


class StudyConsole(Speaker):
    """Shows a study: its runs in progress, those that ended, and the time left.

    Parameters are those of :class:`~mest_fed.cli.speaker.Speaker`.
    """

    def __init__(self, *consoles: Console, **how: Any) -> None:
        super().__init__(*consoles, **how)
        self._running: dict[str, _Running] = {}
        self._took: list[float] = []
        self._total = self._done = self._failed = self._before = 0
        self._at_once = 1
        self._metric: Metric | None = None
        self._live: Live | None = None

    def __enter__(self) -> "StudyConsole":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self, metric: Metric, jobs: int, before: int, at_once: int) -> None:
        """Begin with so many runs, beside those that had ended before."""
        self._metric, self._total, self._before = metric, jobs, before
        self._at_once = max(1, at_once)
        if self.moves and jobs:
            self._live = Live(
                self, console=self._out, refresh_per_second=_PER_SECOND, transient=True
            )
            self._live.start()
        else:
            self.write_row(["cell", "status", *_PIPED, "elapsed_seconds", "reason"])

    def event(self, run: str, event: Mapping[str, Any]) -> None:
        """Take what is told of a run."""
        kind = event["event"]
        if kind in ("done", "failed", "interrupted"):
            before = self._running.pop(run, None)
            if kind == "done" and before is not None:
                self._took.append(self._clock() - before.since)
            self._done += kind == "done"
            self._failed += kind == "failed"
            return
        if run not in self._running and not self.moves:
            self.say(f"{run}: begins")
        running = self._running.setdefault(run, _Running(self._clock()))
        if kind == "phase":
            running.doing = event["text"]
        elif kind == "begin":
            running.doing, running.rounds, running.round = "", event["rounds"], event["done"]
        elif kind == "round":
            running.round = event["round"]
            name = "" if self._metric is None else self._metric.name
            running.value = event["metrics"].get(name, running.value)

    def cell_ended(self, row: Row) -> None:
        """Show a cell that has ended, by its row of the results."""
        if not self._terminal:
            found = [row["cell"], row["status"], *(row[key] for key in _PIPED)]
            self.write_row([*found, round(self.elapsed, 3), row["reason"]])
            return
        text = Text(f"{row['status']:>8}  ", style="red" if row["reason"] else "green")
        text.append(row["cell"], style="bold")
        if row["final"] is not None and self._metric is not None:
            said = (
                f"{self._metric.name} {self._metric.format(row['final'])}",
                f"peak {format_bytes(row['peak_bytes'])}" if row["peak_bytes"] else "",
                f"{format_bytes(row['traffic_bytes'])} sent",
                f"{format_seconds(row['virtual_seconds'])} virtual",
            )
            text.append(f"  {', '.join(filter(None, said))}", style="default")
        if row["reason"]:
            text.append(f"  {row['reason']}", style="red")
        self._out.print(text)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest may take, by those that have ended in this command; None at first."""
        if not self._took:
            return None
        each = sum(self._took) / len(self._took)
        waiting = self._total - self._done - self._failed - len(self._running)
        under_way = sum(1 - min(1.0, it.share) for it in self._running.values())
        return each * (waiting + under_way) / self._at_once

    def __rich__(self) -> Group:
        """Draw the table that moves."""
        done = self._before + self._done
        head = f"{done} of {number_of(self._before + self._total, 'run')} done"
        if self._failed:
            head += f", {self._failed} failed"
        head += f"; {format_seconds(self.elapsed)} so far"
        if (left := self.seconds_left) is not None:
            head += f", about {format_seconds(left)} left"
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=bool(self._running))
        name = "" if self._metric is None else self._metric.name
        table.add_column("running", style="bold", overflow="fold")
        for heading in ("round", name, "time"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", style="dim", no_wrap=True, overflow="ellipsis")
        for run, it in self._running.items():
            rounds = f"{it.round}/{it.rounds}" if it.rounds else ""
            value = (
                "" if self._metric is None or it.value is None else self._metric.format(it.value)
            )
            took = format_seconds(self._clock() - it.since)
            table.add_row(run, rounds, value, took, it.doing)
        return Group(Text(head), table)

    def end(self) -> None:
        """Take the moving table away; possibly twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None
