"""What a person sees: plain lines without a terminal, a table and a bar with one."""

import io

import pytest
from rich.console import Console

from mest_fed.config import from_table
from mest_fed.simulation.trackers.progress import RichDisplay

ROW = {
    "round": 1,
    "metrics": {"accuracy": 0.5},
    "density": 0.1,
    "trained": 9,
    "failed": 1,
    "rejected": 1,
    "bytes_up": 1000,
    "bytes_down": 2000,
    "virtual_seconds": 75.0,
}


CONFIG = from_table({"run": {"rounds": 20}}, "test")


def shown(rows, *, terminal, done=()):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100, color_system=None)
    display = RichDisplay(console)
    display.begin(CONFIG, "quickstart", done)
    for row in rows:
        display.round_done(row)
    display.end()
    display.end()  # after an interruption it may come twice
    return output.getvalue()


def test_without_a_terminal_each_round_is_a_line():
    rows = [
        ROW | {"round": number, "metrics": {} if number == 2 else {"accuracy": 0.5}}
        for number in range(3)
    ]
    assert shown(rows, terminal=False).splitlines() == [
        "1  50.0%  9 done, 2 lost  0.100  3 kB  1 min 15 s",
        "2  —  9 done, 2 lost  0.100  3 kB  1 min 15 s",
    ]


def test_without_losses_none_are_named():
    assert "9 done  " in shown([ROW | {"failed": 0, "rejected": 0}], terminal=False)


def test_a_terminal_shows_a_table_a_bar_and_totals():
    text = shown([ROW | {"round": number} for number in range(1, 16)], terminal=True)
    last = text[text.rindex("quickstart") :]
    assert "15/20 rounds" in last
    for heading in ("round", "accuracy", "clients", "density", "traffic", "virtual time"):
        assert heading in last
    numbers = [int(line.split()[0]) for line in last.splitlines() if " done, 2 lost " in line]
    assert numbers == list(range(6, 16))  # the last ten
    assert "135 trained, 15 failed, 15 rejected; 45 kB sent in all" in last


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_that_ends_before_it_begins(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal)
    RichDisplay(console).end()
    assert console.file.getvalue() == ""


def test_a_resumed_run_begins_where_it_was():
    done = [ROW | {"round": number} for number in range(8)]
    text = shown([], terminal=True, done=done)
    assert "7/20 rounds" in text
    assert "72 trained, 8 failed, 8 rejected; 24 kB sent in all" in text
    assert shown([], terminal=False, done=done) == ""
