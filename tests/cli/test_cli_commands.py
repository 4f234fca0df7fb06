"""What the commands print."""

import io
import json
import subprocess
import sys
from importlib.resources import files

import pytest
from rich.console import Console

import mest_fed
from mest_fed import catalogue, cli
from mest_fed.cli.app import WRONG_INPUT
from mest_fed.cli.devices import profile_table
from mest_fed.devices import load_profile, profile_names

COMMANDS = ("simulate", "client", "plan", "devices", "report")


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


def test_help_of_plan_names_its_options(says):
    text = says("plan", "--help")
    limits = ("model", "width", "norm", "scheme", "density", "method", "batch", "image", "classes")
    for option in (
        *limits,
        "budget",
        "memory-limit",
        "margin",
        "device",
        "preset",
        "set",
        "prefer",
        "json",
        "picture",
    ):
        assert f"--{option}" in text


@pytest.mark.parametrize(
    ("command", "registries"),
    [
        ("plan", ["MODELS", "SCHEMES", "METHODS", "NORMS", "KNOBS"]),
        ("simulate", ["TRACKERS"]),
        ("export", ["EXPORTS"]),
        ("report", ["TABLE_FORMATS"]),
        ("devices", ["TABLE_FORMATS"]),
    ],
)
def test_help_names_what_is_registered(says, command, registries):
    text = says(command, "--help")
    for registry in registries:
        assert ", ".join(getattr(catalogue, registry)) in text


def test_the_version(says):
    assert says("--version") == f"mest-fed {mest_fed.__version__}\n"


def test_devices(says):
    heading, *lines = [line.split("\t") for line in says("devices").splitlines()]
    assert [line[0] for line in lines] == list(profile_names())
    assert {len(line) for line in lines} == {len(heading)}
    assert load_profile(lines[0][0]).title in lines[0]
    assert "modelled dense GFLOP/s" in heading


@pytest.mark.parametrize(("width", "last"), [(60, "GFLOP/s"), (80, "watts"), (150, "device")])
def test_devices_on_a_screen(width, last):
    profiles = [load_profile(name) for name in profile_names()]
    console = Console(width=width, file=io.StringIO())
    console.print(profile_table(profiles, width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[3].split()[-1] == last
    for profile in profiles:
        assert sum(profile.name in line for line in lines) == 1


def test_one_device(says):
    text = says("devices", "rpi-4")
    assert load_profile("rpi-4").title in text
    assert "budget_bytes" in text
    assert "modelled:" in text


def test_devices_as_json(says):
    every = json.loads(says("devices", "--json"))
    assert [device["name"] for device in every] == list(profile_names())
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


def test_help_needs_no_library_of_training() -> None:
    code = (
        "import sys; from mest_fed.cli.app import register_commands; register_commands()\n"
        "heavy = {'torch', 'numpy', 'flwr', 'ray', 'pydantic', 'pyarrow', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_file_is_replaced_only_by_force(form, tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.npz"
    file.write_bytes(b"examples")
    words = ["mest-fed", "devices", "rpi-4", "--format", form, "--out", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == WRONG_INPUT
    assert f"--out: {file} is there already; allowed: --force" in capsys.readouterr().err
    assert file.read_bytes() == b"examples"
    monkeypatch.setattr(sys, "argv", [*words, "--force"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert file.read_bytes() != b"examples"
    monkeypatch.setattr(sys, "argv", ["mest-fed", "devices", "--out", str(tmp_path / "q")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == WRONG_INPUT
    assert "--out = " in capsys.readouterr().err
