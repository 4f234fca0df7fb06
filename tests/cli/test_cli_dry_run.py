"""``mest-fed simulate --dry-run``: what it says is what a run does, and it leaves nothing."""

import io
import itertools
import json
import sys

import pytest
from rich.console import Console

from mest_fed import cli
from mest_fed.cli.planning.forecast import RunForecast, mean_of_longest
from mest_fed.cli.planning.forecast_text import print_forecast
from mest_fed.config import from_table
from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.simulation.settings import resolve
from mest_fed.simulation.simulate import open_run
from mest_fed.units import format_seconds

SMALL = [
    "run.rounds=3",
    "model.width=0.25",
    "server.clients_per_round=4",
    "fleet.devices=6",
    "fleet.mix=rpi-4:2, phone-low:1",
    "fleet.budgets=",
    "behaviour.availability=always",
]
SETTINGS = [part for setting in SMALL for part in ("--set", setting)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    _, config = resolve("quickstart", None, SMALL)
    return open_run("small", config, tmp_path_factory.mktemp("runs") / "new")


def changed(opened, **keys):
    """Return the forecast of a run with other keys, which change neither plans nor data."""
    forecast = RunForecast(opened)
    table = opened.config.model_dump()
    for key, value in keys.items():
        section, _, name = key.partition("__")
        table[section][name] = value
    forecast.config = from_table(table, "a test")
    return forecast


def shown(forecast, width):
    out = io.StringIO()
    print_forecast(forecast, 0, None, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def simulate(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["mest-fed", "simulate", "--workers", "0", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_it_says_what_would_be_and_leaves_nothing(says):
    text = says("simulate", "--dry-run", "--workers", "0", *SETTINGS)  # which looks for files
    for part in ("3 rounds", "4 of 6 devices", "rpi-4", "phone-low", "runs/quickstart", "program"):
        assert part in text


def test_a_run_does_what_was_said(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    _, config = resolve("quickstart", None, SMALL)
    forecast = RunForecast(open_run("quickstart", config, tmp_path / "runs" / "quickstart"))
    kinds = {each.device.name: each for each in forecast.devices}
    said = forecast.run_traffic
    simulate(monkeypatch, capsys, *SETTINGS)
    folder = tmp_path / "runs" / "quickstart"

    summary = json.loads((folder / "summary.json").read_text())
    # What replies say in numbers beside their values is not counted: 300 bytes each.
    assert summary["bytes_up"] == pytest.approx(said.up, rel=0.08)
    assert said.down <= summary["bytes_down"] <= said.down + said.masks + 1
    rows = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["round"] == 1]
    assert len(first) == forecast.asked
    for row in first:
        kind = kinds[row["device"]]
        assert row["bytes_down"] == kind.traffic.down + kind.traffic.masks
        seconds = kind.seconds[list(kind.examples).index(row["examples"])]
        parts = ("download_seconds", "setup_seconds", "train_seconds", "upload_seconds")
        took = sum(row[part] for part in parts)
        assert took == pytest.approx(seconds, rel=0.02)

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    text = simulate(monkeypatch, capsys, "--resume", "--rounds", "2", "--dry-run")
    assert "2 rounds left of 5" in text
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "fleet.budgets=phone-low:100kB"], "phone-low (fleet.budgets): memory budget"),
        (["--set", "server.clients_per_round=7"], "allowed: 1 to 6"),
        (["--out", "/dev/null/x"], "--out /dev/null/x cannot be used: [Errno 20]"),
        (["--resume", "--out", "none"], "--resume"),
    ],
)
def test_what_a_run_would_refuse_is_refused(fails, arguments, said):
    settings = [] if "--resume" in arguments else SETTINGS
    assert said in fails("simulate", "--dry-run", "--workers", "0", *settings, *arguments)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_is_as_wide_as_the_screen(opened, width):
    text = shown(RunForecast(opened), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for word in ("phone-low", "predicted", "density", "at most"):
        assert word in text


def test_a_soft_bound_costs_more_bytes_and_time_than_its_target(opened):
    soft, hard = RunForecast(opened), changed(opened, sparsity__mutation="client")
    assert soft.run_traffic.up > 3 * soft.round_traffic.up
    assert hard.run_traffic.up == pytest.approx(3 * hard.round_traffic.up)
    never = changed(opened, sparsity__mutation="client", server__evaluate_clients_every=0)
    assert never.run_seconds == pytest.approx(3 * never.round_seconds)
    assert hard.run_seconds > never.run_seconds


def test_no_time_is_said_of_rounds_that_do_not_wait(opened):
    buffered = changed(opened, server__mode="buffered", server__buffer=2)
    assert buffered.asked == 2
    assert buffered.round_seconds is None
    semi = changed(opened, server__mode="semi-sync")
    assert semi.round_traffic is None
    assert "every 1 min 00 s" in shown(semi, 120)


def test_devices_that_a_deadline_leaves_out_are_named(opened):
    longest = {each.device.name: each.seconds.max() for each in RunForecast(opened).devices}
    slowest = max(longest, key=longest.get)
    between = sum(longest.values()) / 2  # of two kinds
    slow = changed(opened, fleet__deadline=between)
    text = " ".join(shown(slow, 120).split())
    assert f"not all of {slowest} meet the deadline of {format_seconds(between)}" in text
    assert slow.round_seconds == pytest.approx(between, rel=0.3)


def test_the_mean_of_the_longest_is_that_of_all_cohorts():
    times, drawn = [1.0, 2.0, 2.0, 5.0, 7.0], 3
    cohorts = [max(each) for each in itertools.combinations(times, drawn)]
    timed = [(1.0, 1), (2.0, 2), (7.0, 1), (5.0, 1)]
    assert mean_of_longest(timed, drawn) == pytest.approx(sum(cohorts) / len(cohorts))
