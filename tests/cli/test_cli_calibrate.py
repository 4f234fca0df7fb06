"""``mest-fed calibrate`` and ``plan --deadline``: profiles of one's own, times, wrong options."""

import json
from pathlib import Path

import pytest

from mest_fed.cli import calibrate as command
from mest_fed.devices import batch_work, load_profile, train_seconds
from mest_fed.devices.calibration.board_profile import profile_toml
from mest_fed.simulation.behaviour.clock import least_seconds
from mest_fed.simulation.settings import resolve
from mest_fed.task import Task
from mest_fed.units import parse_seconds

SMALL = ("plan", "--model", "resnet8", "--width", "0.5", "--batch", "16", "--budget", "1GB")
LEAN = ("--set", "behaviour.process_per_message=false")


@pytest.fixture
def board(tmp_path_factory):
    """Return the path of a calibrated board's file."""
    file = tmp_path_factory.mktemp("boards") / "my-board.toml"
    file.write_text(profile_toml(load_profile("rpi-3b-plus")))
    return str(file)


def test_a_profile_of_ones_own_is_a_device_like_others(board, says):
    mine = json.loads(says(*SMALL, "--device", board, "--json"))
    theirs = json.loads(says(*SMALL, "--device", "rpi-3b-plus", "--json"))
    assert mine["device"] == "my-board"
    assert mine["step_seconds"] == theirs["step_seconds"]
    _, config = resolve("quickstart", None, [f"fleet.mix={board}:4", "fleet.devices=4"])
    assert [*Task(config).devices] == [board] * 4


def test_a_deadline_that_is_met_changes_nothing(says):
    table = json.loads(says(*SMALL, *LEAN, "--device", "rpi-4", "--json"))
    timed = ("--device", "rpi-4", "--deadline", "10min", "--examples", "33", "--json")
    with_time = json.loads(says(*SMALL, *LEAN, *timed))
    found = with_time.pop("round")
    assert with_time == table
    assert (found["examples"], found["local_epochs"], found["deadline_seconds"]) == (33, 1, 600)
    assert found["decided"] == "nothing"
    # Two batches of 16; a lone example joins the last.
    assert found["training_seconds"] == pytest.approx(33 / 16 * table["step_seconds"], rel=0.1)


def test_a_round_has_its_transfers_and_the_start_of_a_process(says):
    timed = ("--device", "rpi-4", "--deadline", "10min", "--examples", "16", "--json")
    found = json.loads(says(*SMALL, *timed))
    profile = load_profile("rpi-4")
    beside = found["round"]["seconds"] - found["round"]["training_seconds"]
    assert profile.message_seconds < beside < profile.message_seconds + 1
    batch = train_seconds(profile, batch_work(16 * 3 * 32 * 32 * 4), "block")
    training = found["step_seconds"] + batch
    assert found["round"]["training_seconds"] == pytest.approx(training, abs=2e-6)


def test_a_deadline_lowers_the_density_and_says_so(says, fails):
    timed = ("--device", "rpi-zero-2w", "--examples", "500")
    free = json.loads(says(*SMALL, *LEAN, *timed, "--deadline", "1h", "--json"))
    half = free["round"]["seconds"] * 0.7
    some = ("--deadline", f"{half:.4f}s")
    text = " ".join(says(*SMALL, *LEAN, *timed, *some).split())
    assert "The deadline decided: by the budget alone a round would take" in text
    tight = json.loads(says(*SMALL, *LEAN, *timed, *some, "--json"))
    assert tight["round"]["decided"] == "deadline"
    assert tight["round"]["seconds"] <= half
    assert tight["density"] < free["density"]
    error = fails(*SMALL, *LEAN, *timed, "--deadline", "1 ms")
    assert (
        "error: --deadline = 1 ms is met by no plan within the memory budget = 1 GB; the fastest"
        in error
    )


def test_the_budget_may_decide_alone(says):
    tight = (*SMALL[:-1], "3MB", *LEAN, "--device", "rpi-4", "--examples", "50")
    text = " ".join(says(*tight, "--deadline", "1h").split())
    assert "The budget decided: its plan is fast enough." in text


def test_a_preset_knows_how_many_examples_a_device_has(says):
    timed = ("--device", "rpi-4", "--deadline", "1h", "--json")
    found = json.loads(says("plan", "--preset", "quickstart", *timed))
    task = Task(resolve("quickstart", None, [])[1])
    counts = [task.example_counts(each)[0] for each in range(len(task.devices))]
    assert found["round"]["examples"] == max(counts)
    least = least_seconds(task.config, task.spec, load_profile("rpi-4"), found["density"])
    assert found["round"]["seconds"] - found["round"]["training_seconds"] == pytest.approx(
        least, abs=1e-5
    )


def test_wrong_options_are_one_line(fails):
    assert "a --device NAME" in fails(*SMALL, "--deadline", "60s", "--examples", "9")
    assert "--examples N" in fails(*SMALL, "--device", "rpi-4", "--deadline", "60s")
    assert "with --deadline" in fails(*SMALL, "--device", "rpi-4", "--examples", "9")
    allowed = "a positive number with ms, s, min or h"
    for text in ("0s", "soon", "5 parsecs", "-1s"):
        error = fails(*SMALL, "--device", "rpi-4", "--examples", "9", f"--deadline={text}")
        assert allowed in error
    assert "stand alone" in fails("calibrate", "--serve", "127.0.0.1:0", "--out", "a.toml")
    assert "stand alone" in fails("calibrate", "--compare", "runs/a", "--quick")
    assert "goes with --compare" in fails("calibrate", "--device", "rpi-4")
    assert "--serve = 'here'" in fails("calibrate", "--serve", "here")
    assert "ends in .toml" in fails("calibrate", "--out", "board.json")
    assert "does not exist" in fails("calibrate", "--compare", "runs/nothing")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("60 s", 60), ("1.5min", 90), ("2 h", 7200), ("90", 90)],
)
def test_times_have_units(text, seconds):
    assert parse_seconds(text) == seconds


def test_the_command_gives_the_measuring_what_was_asked(monkeypatch, capsys):
    from mest_fed.cli import baseline
    from mest_fed.devices.calibration import command as measuring

    asked = []
    monkeypatch.setattr(baseline, "measure_baseline", lambda _: baseline.RECORDED)
    monkeypatch.setattr(measuring, "calibrate", asked.append)
    command.calibrate(Path("b.toml"), "rpi-4", 2, "a:1", None, "T", quick=True)
    (wanted,) = asked
    assert (wanted.out, wanted.like, wanted.threads) == (Path("b.toml"), "rpi-4", 2)
    assert (wanted.server, wanted.title) == ("a:1", "T")
    assert (wanted.repeats, wanted.least) == measuring.QUICK
    assert not wanted.force
    assert capsys.readouterr().out == ""
    command.calibrate(Path("b.toml"), force=True)
    said = f"Flower's node with torch: {baseline.RECORDED.in_words()}\n"
    assert capsys.readouterr().out == said
    assert (asked[1].threads, asked[1].force) == (1, True)
