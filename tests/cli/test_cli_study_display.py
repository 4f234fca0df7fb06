"""What a study shows: rows in a pipe, a table with the time left in a terminal."""

import io
import os

import pytest
from rich.console import Console

from mest_fed.cli.studies.display import StudyConsole
from mest_fed.schema import ACCURACY

ROW = {
    "cell": "method=set,seed=1",
    "status": "done",
    "reason": "",
    "final": 0.5,
    "peak_bytes": 4_000_000,
    "bytes_up": 1000,
    "bytes_down": 2000,
    "traffic_bytes": 3000,
    "virtual_seconds": 65.0,
    "wall_seconds": 2.0,
}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shown(clock, *, terminal, width=120):
    out, err = io.StringIO(), io.StringIO()
    console = StudyConsole(
        Console(file=out, width=width, force_terminal=terminal, color_system=None),
        Console(file=err, width=width),
        terminal=terminal,
        clock=clock,
    )
    return console, out, err


def drawn(console):
    out = io.StringIO()
    Console(file=out, width=100).print(console)
    return out.getvalue()


def test_rows_in_a_pipe(clock):
    console, out, err = shown(clock, terminal=False)
    console.begin(ACCURACY, 2, 1, 1)
    clock.now += 5
    console.cell_ended(ROW)
    failed = dict.fromkeys(ROW) | {"cell": "x", "status": "failed", "reason": "no room"}
    console.cell_ended(failed)
    console.say("a sentence")
    heading, one, two = [line.split("\t") for line in out.getvalue().splitlines()]
    assert dict(zip(heading, one, strict=True)) == {
        "cell": "method=set,seed=1",
        "status": "done",
        "final": "0.5",
        "peak_bytes": "4000000",
        "bytes_up": "1000",
        "bytes_down": "2000",
        "virtual_seconds": "65.0",
        "wall_seconds": "2.0",
        "elapsed_seconds": "5.0",
        "reason": "",
    }
    assert two == ["x", "failed", *[""] * 6, "5.0", "no room"]
    assert err.getvalue() == "a sentence\n"


def test_a_pipe_is_told_once_that_a_run_begins(clock):
    console, out, err = shown(clock, terminal=False)
    console.begin(ACCURACY, 1, 0, 1)
    for text in ("planning", "measuring"):
        console.event("a", {"event": "phase", "text": text})
    assert err.getvalue() == "a: begins\n"
    assert len(out.getvalue().splitlines()) == 1


def test_a_terminal_shows_what_runs_and_how_long_the_rest_takes(clock):
    console, out, _ = shown(clock, terminal=True)
    with console:
        console.begin(ACCURACY, 4, 2, 2)
        assert "2 of 6 runs done" in drawn(console)
        assert console.seconds_left is None
        for run in ("a", "b"):
            console.event(run, {"event": "phase", "text": "planning"})
        console.event("a", {"event": "begin", "rounds": 10, "done": 0})
        console.event("a", {"event": "round", "round": 5, "metrics": {"accuracy": 0.25}})
        text = drawn(console)
        assert "5/10" in text
        assert "25.0%" in text
        assert "planning" in text
        clock.now += 20
        console.event("b", {"event": "done", "warning": ""})
        # One of the four waits, one is half done, one ended after 20 s; two run at a time.
        console.event("c", {"event": "phase", "text": "planning"})
        assert console.seconds_left == pytest.approx(20 * (1 + 0.5 + 1) / 2)
        assert "3 of 6 runs done; 20.0 s so far, about 25.0 s left" in drawn(console)
        console.event("a", {"event": "failed", "reason": "no room"})
        assert "3 of 6 runs done, 1 failed" in drawn(console)
        console.cell_ended(ROW)
    assert "done  method=set,seed=1  accuracy 50.0%, peak 4 MB, 3 kB sent" in out.getvalue()


def test_nothing_is_shown_if_quiet(clock):
    out = io.StringIO()
    console = StudyConsole(
        Console(file=out, quiet=True), Console(file=out, quiet=True), quiet=True, clock=clock
    )
    with console:
        console.begin(ACCURACY, 1, 0, 1)
        console.cell_ended(ROW)
        console.say("a sentence")
    assert out.getvalue() == ""


def test_a_reader_that_has_gone_does_not_end_the_study(clock):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:  # closing it writes what is left
        console = StudyConsole(Console(file=pipe), Console(file=io.StringIO()), clock=clock)
        console.begin(ACCURACY, 1, 0, 1)
        console.cell_ended(ROW)
        assert os.fstat(writing).st_rdev == os.stat(os.devnull).st_rdev
