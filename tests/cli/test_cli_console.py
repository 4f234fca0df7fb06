"""What a person sees while a run goes: lines in a terminal, a table of the rounds in a pipe."""

import csv
import io
import os

import pytest
from cli_output import without_phases
from rich.console import Console

from mest_fed.cli.console import RunConsole, app_columns, columns_of, in_width
from mest_fed.cli.tables import piped_row
from mest_fed.config import from_table
from mest_fed.schema import ACCURACY, LOSS, FailureKind, Metric, TaskStatus, in_words

ROW = {
    "round": 1,
    "metrics": {"accuracy": 0.5, "loss": 2.3},
    "train_loss": 1.25,
    "density": 0.1,
    "tasks": {"ok": 9, "away": 1, "rejected": 1},
    "bytes_up": 1000,
    "bytes_down": 2000,
    "virtual_seconds": 75.0,
    "wall_seconds": 5.0,
}
APP_ROW = {
    "round": 1,
    "tasks": {"ok": 4},
    "bytes_up": 1000,
    "bytes_down": 2000,
    "virtual_seconds": 0.0,
    "train_metrics": {"loss": 0.5},
    "evaluate_metrics": {"loss": 0.25, "accuracy": 0.75},
}
TASK = {"failure": "away", "reason": "device was away"}
CONFIG = from_table({"run": {"rounds": 20}}, "test")


class Seen:
    """A console whose output is kept; its clock goes by half a second a look."""

    def __init__(self, *, terminal, width=100, quiet=False, colours=False):
        self.out, self.err, self._now = io.StringIO(), io.StringIO(), 0.0
        options = {"width": width, "highlight": False, "quiet": quiet}
        terminals = {"force_terminal": terminal or colours}
        out = Console(file=self.out, **options, **terminals)
        err = Console(file=self.err, **options, **terminals)
        self.console = RunConsole(out, err, terminal=terminal, quiet=quiet, clock=self._clock)

    def _clock(self):
        self._now += 0.5
        return self._now

    def run(self, rows, done=(), tasks=()):
        with self.console as console:
            console.phase("loading libraries")
            console.begin(CONFIG, "quickstart", done)
            for row in rows:
                for _ in range(row["tasks"].get("ok", 0)):
                    console.task_ended("train")
                console.tasks_done(tasks)
                console.round_done(row)
        console.end()  # after an interruption it may come twice
        return self

    @property
    def lines(self):
        """The lines that stay on the screen, without escape codes."""
        return [line.rstrip() for line in plain(self.out.getvalue()).splitlines()]

    @property
    def table(self):
        return list(csv.DictReader(io.StringIO(self.out.getvalue()), delimiter="\t"))


def plain(text):
    from rich.text import Text

    return Text.from_ansi(text).plain


def rounds(*numbers, **changes):
    return [ROW | changes | {"round": number} for number in numbers]


def test_a_pipe_gets_a_header_and_a_row_a_round():
    rows = rounds(0, tasks={}, train_loss=None) + rounds(1) + rounds(2, metrics={})
    seen = Seen(terminal=False, colours=True).run(rows, tasks=[TASK])
    assert "\x1b" not in seen.out.getvalue()
    said = seen.err.getvalue().splitlines()
    assert "loading libraries" in said[0]
    assert "training quickstart: 20 rounds" in said[1]
    assert without_phases(seen.err.getvalue()) == ""
    first, second, third = seen.table
    assert [row["round"] for row in seen.table] == ["0", "1", "2"]
    assert first["train_loss"] == ""
    assert {first[status] for status in TaskStatus} == {"0"}
    numbers = {key: float(value) for key, value in second.items()}
    elapsed = numbers.pop("elapsed_seconds")
    assert elapsed > float(first["elapsed_seconds"]) > 0
    ends = dict.fromkeys(map(str, TaskStatus), 0)
    assert numbers == {"round": 1, "accuracy": 0.5, "loss": 2.3, "train_loss": 1.25} | ends | {
        "density": 0.1,
        "ok": 9,
        "away": 1,
        "rejected": 1,
        "bytes_up": 1000,
        "bytes_down": 2000,
        "virtual_seconds": 75,
    }
    assert third["accuracy"] == third["loss"] == ""


def test_an_app_s_rows_have_its_metrics():
    seen = Seen(terminal=False)
    with seen.console as console:
        console.begin_app("an app", timed=False)
        console.round_done(APP_ROW)
    (row,) = seen.table
    assert (row["ok"], row["train_metrics"]) == ("4", "loss=0.5")
    assert row["evaluate_metrics"] == "loss=0.25 accuracy=0.75"
    last = app_columns(lambda: 0.0, timed=False)[-1]
    assert last.cell(APP_ROW) == "4 ok; train loss 0.5, evaluate loss 0.25, accuracy 0.75"


@pytest.mark.parametrize("metric", [ACCURACY, LOSS, Metric("word-error-rate-of-all", False)])
def test_the_header_is_that_of_every_row(metric):
    names = list(piped_row(ROW, metric, 1.0))
    assert len(names) == len(set(names))
    assert names[:2] == ["round", metric.name]
    assert names.count("loss") == 1


def test_a_reader_that_has_gone_does_not_end_the_run():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        console = RunConsole(Console(file=pipe), Console(file=io.StringIO()), terminal=False)
        console.begin(CONFIG, "quickstart", [])
        for row in rounds(0, 1):
            console.round_done(row)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_column_breaks(width):
    tasks = dict.fromkeys(TaskStatus, 10)
    rows = rounds(*range(4)) + rounds(4, tasks=tasks, virtual_seconds=50_000.0)
    seen = Seen(terminal=True, width=width).run(rows, tasks=[TASK])
    assert max(map(len, seen.lines)) <= width
    heading = next(line for line in seen.lines if line.startswith("round"))
    for each in ("accuracy", "loss", "elapsed", "tasks"):
        assert each in heading
    start = heading.index("tasks")
    told = [line for line in seen.lines if line.strip()[:1].isdigit() and "ok" in line]
    assert [line.split()[0] for line in told] == list("01234")
    for line in told:
        assert line[start - 1] == " "
        assert line[start].isdigit()
    assert told[1][start:].startswith("9 ok, 1 rejected, 1")  # the rest is below it


def test_narrow_terminals_have_fewer_columns():
    columns = columns_of(ACCURACY, lambda: 0.0)
    names = {width: [each.heading for each in in_width(columns, width)] for width in (60, 80, 120)}
    assert names[120] == [each.heading for each in columns]
    assert names[80] == [name for name in names[120] if name != "virtual time"]
    assert names[60] == ["round", "accuracy", "loss", "elapsed", "tasks"]
    assert in_width(columns, 10)[-1].heading == "tasks"


def test_a_terminal_shows_phases_rounds_and_reasons_once():
    error = {"failure": "client-error", "reason": "the client raised KeyError: 'img'"}
    seen = Seen(terminal=True).run(rounds(0, 1, 2, density=0.15), tasks=[TASK, error])
    text = "\n".join(seen.lines)
    assert text.count("loading libraries") >= 1
    assert "training quickstart: 20 rounds" in text
    assert text.count("away: the device was away (first in round 0)") == 1
    assert text.count("failed: the client raised KeyError: 'img' (first in round 0)") == 1
    assert text.count("density is above the 0.1 asked for: mest-ems grows") == 1


def test_within_a_round_something_moves():
    seen = Seen(terminal=True)
    with seen.console as console:
        console.begin(CONFIG, "quickstart", [])
        console.round_done(ROW | {"round": 0})
        texts = []
        for kind in ("train", "train", "evaluate"):
            console.task_ended(kind)
            texts.append(console.status)
        assert texts == [
            "round 1: 1 of 10 tasks ended",
            "round 1: 2 of 10 tasks ended",
            "round 1: 1 evaluation ended",
        ]
        console.round_done(ROW | {"round": 20})
        assert console.status == "finishing"


def test_a_resumed_run_says_where_it_goes_on():
    text = "\n".join(Seen(terminal=True).run([], done=rounds(*range(8))).lines)
    assert "20 rounds, going on after round 7" in text
    assert "0.5 s  loading libraries" in text
    assert len(Seen(terminal=False).run(rounds(8), done=rounds(*range(8))).table) == 1


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_shows_nothing(terminal):
    seen = Seen(terminal=terminal, quiet=True).run(rounds(0, 1), tasks=[TASK])
    seen.console.say("a sentence")
    assert (seen.out.getvalue(), seen.err.getvalue()) == ("", "")


def test_how_tasks_ended_in_words():
    assert in_words({}) == in_words({TaskStatus.LATE: 0}) == ""
    assert in_words({TaskStatus.AWAY: 1, TaskStatus.OK: 1000}) == "1,000 ok, 1 away"


@pytest.mark.parametrize("kind", FailureKind)
def test_a_failure_is_explained(kind):
    told = {FailureKind.CLIENT_ERROR, FailureKind.WORKER_DIED, FailureKind.UPDATE_REJECTED}
    assert kind.explain("its reason") == ("its reason" if kind in told else kind.label)
    assert kind.explain(None) == kind.label
