"""What the commands print."""

import json
import sys
from importlib.resources import files

import pytest

import mest_fed
from mest_fed import cli
from mest_fed.devices import load_profile, profile_names

COMMANDS = ("simulate", "client", "plan", "devices", "report")


@pytest.fixture
def says(monkeypatch, capsys, tmp_path):
    """Return a function that runs a command and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mest-fed", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert caught.value.code == 0
        assert err == ""
        assert list(tmp_path.iterdir()) == []
        return out

    return run


def test_help_names_the_commands(says):
    text = says("--help")
    for command in COMMANDS:
        assert command in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(says, command):
    text = says(command, "--help")
    assert f"mest-fed {command}" in text
    assert len(text.splitlines()) > 5


def test_help_of_simulate_names_its_options(says):
    text = says("simulate", "--help")
    options = ("preset", "config", "set", "out", "workers", "address", "resume", "quiet")
    for option in options:
        assert f"--{option}" in text


def test_help_of_client_names_its_options(says):
    text = says("client", "--help")
    link = ("superlink", "insecure", "root-certificates", "port")
    for option in (*link, "partition", "device", "budget", "memory-limit", "margin"):
        assert f"--{option}" in text


def test_the_version(says):
    assert says("--version") == f"mest-fed {mest_fed.__version__}\n"


def test_devices(says):
    text = says("devices")
    for name in profile_names():
        assert name in text
    assert "modelled" in text


def test_one_device(says):
    text = says("devices", "rpi-4")
    assert load_profile("rpi-4").title in text
    assert "budget_bytes" in text
    assert "modelled:" in text


def test_devices_as_json(says):
    every = json.loads(says("devices", "--json"))
    assert [device["name"] for device in every] == profile_names()
    (one,) = json.loads(says("devices", "rpi-4", "--json"))
    assert one in every
    assert one["memory_bytes"] == load_profile("rpi-4").memory_bytes
    assert set(one["sources"]) >= {"memory_bytes", "flops"}


def test_a_device_of_ones_own(monkeypatch, capsys, tmp_path):
    text = (files("mest_fed.devices") / "profiles" / "rpi-4.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["mest-fed", "devices", str(tmp_path / "mine.toml"), "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out)[0]["name"] == "mine"


LARGE = ("plan", "--budget", "2GB")


def test_a_plan(says):
    text = says(*LARGE)
    assert "modelled" in text
    for part in ("activations", "values", "gradients", "predicted peak"):
        assert part in text
    assert "Trains 10.0% of the sparse weights" in text


def test_a_plan_as_json(says):
    plan = json.loads(says(*LARGE, "--json"))
    assert plan["budget_bytes"] == 2_000_000_000
    assert plan["kind"] == "modelled"
    assert plan["predicted_peak_bytes"] == sum(plan["parts"].values()) <= plan["budget_bytes"]
    assert (plan["density"], plan["micro_batch"], plan["batch"]) == (0.1, 64, 64)


def test_a_plan_within_24_megabytes(says):
    plan = json.loads(says("plan", "--budget", "24MB", "--json"))
    assert plan["predicted_peak_bytes"] <= 24_000_000
    assert plan["micro_batch"] < 64
    assert "of 24 MB" in says("plan", "--budget", "24MB")


def test_a_plan_for_a_device(says):
    plan = json.loads(says("plan", "--device", "rpi-4", "--json"))
    assert plan["budget_bytes"] == load_profile("rpi-4").budget_bytes


def test_a_dense_plan_needs_more(says):
    sparse, dense = (
        json.loads(says(*LARGE, "--method", method, "--json")) for method in ("mest-em", "dense")
    )
    assert dense["predicted_peak_bytes"] > sparse["predicted_peak_bytes"]
    assert dense["density"] == 1.0
    assert "Trains all of" in says(*LARGE, "--method", "dense")


def test_options_of_a_plan(says):
    options = ("--model", "resnet8", "--width", "1", "--image", "1x8x8", "--batch", "16")
    plan = json.loads(says(*LARGE, *options, "--classes", "3", "--norm", "batch", "--json"))
    assert plan["batch"] == 16
    small = json.loads(says(*LARGE, "--model", "resnet8", "--json"))
    assert plan["predicted_peak_bytes"] < small["predicted_peak_bytes"]
