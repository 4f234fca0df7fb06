"""What the benchmarks share: turns, medians, ratios, JSON, refusals in one line."""

import json

import pytest
from benchmark_cases import timings
from command_line import WRONG_INPUT, Parser, collect, positive, run, share, show
from harness import Timing, compare, in_turn, machine, software, write_json

from mest_fed.errors import InputError


class StepTime:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def work(self, *seconds):
        """Return a contestant that takes these seconds, one after another."""
        left = list(seconds)

        def contestant():
            self.now += left.pop(0)

        return contestant


def test_medians_and_quartiles():
    timing = Timing((5.0, 1.0, 4.0, 2.0, 3.0))
    assert timing.median == 3
    assert timing.quartiles == (2, 4)
    assert timing.spread == 2
    assert Timing((7.0,)).quartiles == (7, 7)


def test_warm_up_is_not_counted():
    clock = StepTime()
    contestants = {"a": clock.work(9, 1, 3), "b": clock.work(8, 5, 6)}
    timings = in_turn(contestants, repeats=2, warm_up=1, clock=clock)
    assert timings["a"]["total"].runs == (1, 3)
    assert timings["b"]["total"].runs == (5, 6)


def test_contestants_take_turns_and_change_places():
    order = []
    in_turn({name: lambda name=name: order.append(name) for name in "abc"}, repeats=3, warm_up=1)
    assert "".join(order) == "cba" + "abc" + "cba" + "abc"


def test_a_contestant_may_time_its_own_parts():
    clock = StepTime()
    timings = in_turn({"a": lambda: {"forward": 1.0, "backward": 2.5}}, 2, 0, clock=clock)
    assert {part: timing.runs for part, timing in timings["a"].items()} == {
        "forward": (1.0, 1.0),
        "backward": (2.5, 2.5),
        "total": (3.5, 3.5),
    }


def test_the_ratio_says_how_many_times_better_ours_is():
    ours = timings(forward=[0.001, 0.001, 0.003], total=[0.002, 0.004, 0.006])
    peer = timings(forward=[0.004, 0.004, 0.004], total=[0.010, 0.012, 0.014])
    assert compare("layer", ours, peer, threads=1) == {
        "name": "layer",
        "ours": 4.0,
        "peer": 12.0,
        "unit": "ms",
        "ratio": 3.0,
        "runs": 3,
        "threads": 1,
        "ours_quartiles": [3.0, 5.0],
        "peer_quartiles": [11.0, 13.0],
        "ours_forward": 1.0,
        "peer_forward": 4.0,
        "ratio_forward": 4.0,
        "ours_runs": {"forward": [1.0, 1.0, 3.0], "total": [2.0, 4.0, 6.0]},
        "peer_runs": {"forward": [4.0, 4.0, 4.0], "total": [10.0, 12.0, 14.0]},
    }


def test_json(tmp_path):
    path = tmp_path / "rows.json"
    rows = [compare("a", timings(total=[1.0]), timings(total=[2.0]))]
    write_json(path, rows, software=software("torch", "no-such-package"))
    written = json.loads(path.read_text())
    assert written["machine"] == machine()
    assert written["rows"][0]["ratio"] == 2
    assert list(written["software"]) == ["python", "torch"]


def test_interruption_keeps_the_rows_that_are_done(capsys):
    def rows():
        yield {"name": "first", "ratio": 2.0}
        raise KeyboardInterrupt

    assert collect(rows()) == [{"name": "first", "ratio": 2.0}]
    assert "interrupted after 1 rows" in capsys.readouterr().err


def test_table(capsys):
    rows = [{"name": "a", "ratio": 2.0}, {"name": "b", "ratio": 12345.6, "choice": None}]
    show("Rows", rows, {"row": "name", "ratio": "ratio", "choice": "choice"})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["Rows"]
    assert lines[2:] == [["a", "2", "-"], ["b", "12346", "-"]]


def parse(*arguments):
    parser = Parser("Test.", {"repeats": 2})
    parser.add_argument("--repeats", type=positive, default=9)
    parser.add_argument("--density", type=share, default=0.5)
    return parser.parse_args(arguments)


def test_quick_gives_way_to_what_is_given():
    assert parse().repeats == 9
    assert parse("--quick").repeats == 2
    assert parse("--quick", "--repeats", "4").repeats == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repeats", "0"), "--repeats: '0' is not allowed; allowed: a positive integer"),
        (("--repeats", "-1"), "--repeats: '-1' is not allowed"),
        (("--density", "nan"), "--density: 'nan' is not allowed; allowed: a number in"),
        (("--density", "much"), "--density: 'much' is not allowed"),
        (("--speed", "9"), "unrecognized arguments: --speed 9"),
        (("--json", "/no/such/folder/a.json"), "allowed: a file in an existing folder"),
        (("--json", "/"), "allowed: a file in an existing folder"),
    ],
)
def test_refusals(arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        run(lambda: parse(*arguments))
    assert left.value.code == WRONG_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_run_without_errors_ends_with_0():
    with pytest.raises(SystemExit) as left:
        run(lambda: None)
    assert left.value.code == 0


def test_input_errors_of_the_library_are_refusals_too(capsys):
    def main():
        raise InputError("scheme = 'x'\nis not allowed")

    with pytest.raises(SystemExit) as left:
        run(main)
    assert left.value.code == WRONG_INPUT
    assert capsys.readouterr().err == "error: scheme = 'x' is not allowed\n"
