"""``mest-fed shares``: files that nodes read, and commands that start the same run."""

import shlex
import sys

import numpy as np
import pytest

from mest_fed import cli
from mest_fed.cli.shares import settings_alike
from mest_fed.config import from_table, read_toml
from mest_fed.link.node.command import parser
from mest_fed.link.node.data import read_examples
from mest_fed.link.server.lean_run import describe_run
from mest_fed.task import Task

SMALL = ("--set", "fleet.devices=3", "--set", "server.clients_per_round=3")
ALIKE = ("--set", "behaviour.availability=always", "--set", "server.min_nodes=3")


@pytest.fixture
def wrote(monkeypatch, capsys, tmp_path):
    """Return a function that runs the command in an empty folder; gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mest-fed", "shares", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
        return capsys.readouterr()

    return run


def test_a_node_reads_the_examples_of_its_simulated_device(wrote, tmp_path):
    said = wrote(*SMALL, *ALIKE)
    assert said.err == ""
    task = Task(from_table(read_toml(tmp_path / "shares" / "run.toml"), "test"))
    train = task.data.train.examples
    heading, simulation, server, *nodes = [
        shlex.split(line, comments=True) for line in said.out.splitlines()
    ]
    assert heading == []
    assert simulation[:3] == ["mest-fed", "simulate", "shares/run.toml"]
    assert server[:3] == ["mest-fed", "server", "shares/run.toml"]
    assert len(nodes) == 3
    for number, words in enumerate(nodes):
        assert words[:2] == ["mest-fed", "node"]
        node, device = parser().parse_args(words[2:]), task.devices[number]
        assert (node.partition, node.device) == (number, device)
        assert int(node.budget) == task.budget(device)
        run = describe_run(task, task.plan(int(node.budget), device), number)
        read, rows = read_examples(node.data, run.inputs), task.partitions[number]
        assert len(rows) > 100
        np.testing.assert_array_equal(read.inputs, train.inputs[rows])
        np.testing.assert_array_equal(read.targets, train.targets[rows])
        assert read.inputs.dtype == train.inputs.dtype


def test_one_device_of_a_large_fleet_has_a_file(wrote, tmp_path):
    devices = ("--set", "fleet.devices=1000000", "--set", "data.partition=sampled")
    said = wrote(*devices, "--partition", "7", "--partition", "999999", "--out", "some")
    names = sorted(path.name for path in (tmp_path / "some").iterdir())
    assert names == ["device-7.npz", "device-999999.npz", "run.toml"]
    assert "--partition 999999 " in said.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--partition", "20"), "--partition = 20 is not allowed; allowed: 0 to 19"),
        (("--set", "fleet.devices=1001"), "fleet.devices = 1001 is not allowed; allowed: at most"),
        (("--set", "fleet.mix=nope.toml:4"), "nope.toml: cannot read it (No such file or dir"),
        (("--preset", "nothing"), "--preset = nothing is not allowed; allowed: "),
    ],
)
def test_what_cannot_be_written(fails, arguments, line):
    assert line in fails("shares", *arguments).replace("'", "")


def test_files_are_replaced_only_by_force(wrote, tmp_path, monkeypatch, capsys):
    wrote(*SMALL)
    own = tmp_path / "shares" / "device-2.npz"
    (tmp_path / "shares" / "run.toml").unlink()
    own.write_bytes(b"mine")
    for name in ("device-0.npz", "device-1.npz"):
        own.with_name(name).unlink()
    monkeypatch.setattr(sys, "argv", ["mest-fed", "shares", *SMALL])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "shares/device-2.npz is there already; allowed: --force" in capsys.readouterr().err
    assert [path.name for path in own.parent.iterdir()] == [own.name]
    wrote(*SMALL, "--force")
    assert own.read_bytes() != b"mine"


def test_what_keeps_nodes_from_the_weights_of_the_simulation(wrote):
    lacking = "behaviour.availability=always --set server.min_nodes=3"
    assert wrote(*SMALL).err.endswith(f"only with: --set {lacking}\n")
    fleet, server = {"devices": 5}, {"min_nodes": 5, "clients_per_round": 5}
    behaviour = {"availability": "always"}
    table = {"fleet": fleet, "server": server, "behaviour": behaviour}
    assert settings_alike(from_table(table, "test")) == []
    table["behaviour"] = behaviour | {"battery": True, "dropout": 0.1}
    table["server"] = {"min_nodes": 4, "clients_per_round": 3, "selection": "utility"}
    assert settings_alike(from_table(table, "test")) == [
        "behaviour.dropout=0.0",
        "behaviour.battery=false",
        "server.min_nodes=5",
        "server.selection=uniform",
    ]
    table["server"] = server | {"clients_per_round": 6}
    table["behaviour"] = behaviour
    assert settings_alike(from_table(table, "test")) == ["server.clients_per_round=5"]
