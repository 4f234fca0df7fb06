"""What a person sees while a run goes: lines in a terminal, a table in a pipe.

In a terminal each phase and each round is a line above one line that moves. Elsewhere standard
output has a header and a row for each round, their columns apart by tabs, and nothing else:
phases, reasons and what the run came to go to standard error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from mest_fed.cli.speaker import Speaker
from mest_fed.cli.tables import APP_KINDS, EMPTY_ROUND, piped_row
from mest_fed.schema import LOSS, FailureKind, Metric, in_words
from mest_fed.units import format_bytes, format_seconds, number_of

if TYPE_CHECKING:
    from mest_fed.config import RunConfig

Row = Mapping[str, Any]

#: Characters that the last column has at least; others are left out before.
_LEAST_REST = 22
#: A line that is wider is hard to read.
_WIDEST = 140
_GAP = 2
_MINUTE = 60
_LONGEST_NAME = 14
#: Reasons of failures that are said while a run goes; the report has all.
_MOST_REASONS = 12


@dataclass(frozen=True)
class Shown:
    """A column of the rounds in a terminal.

    Parameters
    ----------
    heading : str
        Its name.
    cell : callable
        A round's row -> its text.
    width : int
        In characters; 0 for the last column, which has the rest.
    needed : bool
        Whether it stays however narrow the terminal is.
    """

    heading: str
    cell: Callable[[Row], str]
    width: int
    needed: bool = False


def columns_of(metric: Metric, elapsed: Callable[[], float]) -> list[Shown]:
    """Return the columns of the rounds of our own runs, the tasks last."""
    judged = [metric] if metric.name == LOSS.name else [metric, LOSS]
    return [
        _ROUND,
        *(_value(each) for each in judged),
        Shown("density", lambda row: f"{row['density']:.3f}", 7),
        _TRAFFIC,
        _VIRTUAL,
        _elapsed(elapsed),
        Shown("tasks", lambda row: in_words(row["tasks"]), 0, True),
    ]


def app_columns(elapsed: Callable[[], float], *, timed: bool) -> list[Shown]:
    """Return the columns of a Flower app's rounds; ``timed``: its nodes have devices."""
    virtual = [_VIRTUAL] if timed else []
    last = Shown("tasks; metrics", _app_tasks, 0, True)
    return [_ROUND, _TRAFFIC, *virtual, _elapsed(elapsed), last]


def _value(metric: Metric) -> Shown:
    def cell(row: Row) -> str:
        value = row["metrics"].get(metric.name)
        return metric.format(value) if metric.share or value is None else f"{value:#.4g}"

    width = min(_LONGEST_NAME, max(7, len(metric.name)))
    return Shown(metric.name, cell, width, True)


def _elapsed(elapsed: Callable[[], float]) -> Shown:
    return Shown("elapsed", lambda _: format_seconds(elapsed()), 10, True)


def _app_tasks(row: Row) -> str:
    trained, evaluated = (row[f"{kind}_metrics"] for kind in APP_KINDS)
    both = trained.keys() & evaluated.keys()
    metrics = [
        f"{f'{kind} ' if name in both else ''}{name} {value:.4g}"
        for kind, values in zip(APP_KINDS, (trained, evaluated), strict=True)
        for name, value in values.items()
    ]
    return "; ".join(filter(None, (in_words(row["tasks"]), ", ".join(metrics))))


_ROUND = Shown("round", lambda row: f"{row['round']}", 5, True)
_TRAFFIC = Shown("traffic", lambda row: format_bytes(row["bytes_up"] + row["bytes_down"]), 7)
_VIRTUAL = Shown("virtual time", lambda row: format_seconds(row["virtual_seconds"]), 12)


def in_width(columns: Sequence[Shown], width: int) -> list[Shown]:
    """Leave out columns, the last ones first, until the last has room beside the others."""
    chosen = list(columns)
    while width - sum(each.width + _GAP for each in chosen[:-1]) < _LEAST_REST:
        spare = [each for each in chosen if not each.needed]
        if not spare:
            break
        chosen.remove(spare[-1])
    return chosen


class RunConsole(Speaker):
    """Shows a run: phases, rounds and reasons; parameters as for :class:`Speaker`.

    It is an observer of the run and a watcher of what goes on between the rounds
    (:mod:`mest_fed.simulation.trackers.progress`).
    """

    def __init__(self, *consoles: Console, **how: Any) -> None:
        super().__init__(*consoles, **how)
        self._metric: Metric | None = None
        self._columns: list[Shown] = []
        self._target: float | None = None
        self._why_above = ""
        self._new_reasons: list[str] = []
        self._told: set[str] = set()
        self._round, self._kind, self._ended, self._of = 0, "", 0, 0
        self._live = _moving_line(self._out) if self.moves else None
        self._bar = None if self._live is None else self._live.add_task("", total=None, rounds="")
        self._total: int | None = None
        #: Seconds that rounds took before this command, of a run that goes on.
        self.earlier_seconds = 0.0
        #: What the moving line says.
        self.status = ""

    def __enter__(self) -> "RunConsole":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def phase(self, text: str) -> None:
        """Say what begins now."""
        seconds = self.elapsed
        since = format_seconds(seconds) if seconds >= _MINUTE else f"{seconds:.1f} s"
        self.say(f"{since:>10}  {text}")
        self._move(text)

    def note(self, text: str) -> None:
        """Say what a person should know beside the phases."""
        self.say(text, "dim", indent=7)

    def begin(self, config: "RunConfig", name: str, done: Sequence[Row]) -> None:
        """Begin with the rounds of one of our own runs."""
        from mest_fed.sparsity import build_method
        from mest_fed.training import objective_of

        sparsity, server = config.sparsity, config.server
        self._metric = objective_of(config.task.name, config.task.options).primary
        self._of = server.clients_per_round if server.mode == "sync" else 0
        if sparsity.method != "dense" and build_method(sparsity.method, sparsity.density).peak > 1:
            self._target = sparsity.density
            self._why_above = (
                f"density is above the {sparsity.density:g} asked for: {sparsity.method} grows "
                "weights before it removes as many (a soft memory bound), until its last stage"
            )
        number = done[-1]["round"] if done else -1
        self.earlier_seconds = done[-1]["wall_seconds"] if done else 0.0
        again = f", going on after round {number}" if done else ""
        self.phase(f"training {name}: {number_of(config.run.rounds, 'round')}{again}")
        self._head(columns_of(self._metric, lambda: self.elapsed), config.run.rounds, number)

    def begin_app(self, name: str, *, timed: bool) -> None:
        """Begin with the rounds of a Flower app; ``timed``: its nodes have devices."""
        self.phase(f"running {name}")
        self._head(app_columns(lambda: self.elapsed, timed=timed), None, 0)

    def task_ended(self, kind: str) -> None:
        """Count a task, ``train`` or ``evaluate``, that ended in the round in progress."""
        if kind != self._kind:
            self._kind, self._ended = kind, 0
        self._ended += 1
        noun = "evaluation" if kind == "evaluate" else "task"
        if kind == "train" and self._ended <= self._of:
            count = f"{self._ended:,} of {number_of(self._of, noun)}"
        else:
            count = number_of(self._ended, noun)
        self._move(f"round {self._round}: {count} ended")

    def tasks_done(self, rows: Sequence[Row]) -> None:
        """Take the rows of ``clients.jsonl`` of a round, whose reasons are said once each."""
        for row in rows:
            if row["failure"] is not None:
                kind = FailureKind(row["failure"])
                reason = f"{kind.status}: {kind.explain(row['reason'])}"
                if reason not in self._told and len(self._told) < _MOST_REASONS:
                    self._told.add(reason)
                    self._new_reasons.append(reason)

    def round_done(self, row: Row) -> None:
        """Show a round."""
        if self._terminal:
            self._print_cells([each.cell(row) for each in self._columns])
        else:
            self.write_row(list(piped_row(row, self._metric, self.elapsed).values()))
        for reason in self._new_reasons:
            self.note(f"{reason} (first in round {row['round']})")
        self._new_reasons = []
        if self._target is not None and row["density"] > 1.01 * self._target:
            self.note(self._why_above)
            self._target = None
        self._next(row["round"])

    def end(self) -> None:
        """Take the moving line away; also after an interruption, and possibly twice."""
        if self._live is not None:
            self._live.stop()

    def _head(self, columns: list[Shown], total: int | None, done: int) -> None:
        self._columns = in_width(columns, min(self._out.width, _WIDEST))
        self._total = total
        if self._terminal:
            self._print_cells([each.heading for each in self._columns], "dim")
        else:
            self.write_row(list(piped_row(EMPTY_ROUND, self._metric, 0.0)))
        self._next(done)

    def _next(self, done: int) -> None:
        """Have the moving line show the round after one that is done; -1: none is."""
        self._round, self._kind = done + 1, ""
        last = self._total is not None and done >= self._total
        self._move("finishing" if last else f"round {self._round}", max(0, done))

    def _move(self, text: str, done: int | None = None) -> None:
        self.status = text
        if self._live is not None and self._bar is not None:
            self._live.update(self._bar, description=text)
            if done is not None:
                rounds = f"{done}/{self._total}" if self._total else f"{done}"
                self._live.update(self._bar, completed=done, total=self._total, rounds=rounds)

    def _print_cells(self, cells: Sequence[str], style: str = "") -> None:
        table = Table.grid(padding=(0, _GAP, 0, 0))
        for each in self._columns:
            if each.width:
                table.add_column(justify="right", width=each.width, no_wrap=True)
            else:
                table.add_column(overflow="fold")
        table.add_row(*(Text(cell) for cell in cells), style=style)
        self._out.print(table, width=min(self._out.width, _WIDEST))


def _moving_line(console: Console) -> Progress:
    text = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=text),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[rounds]}"),
        TimeElapsedColumn(),
        console=console,
        expand=True,
        transient=True,
    )
