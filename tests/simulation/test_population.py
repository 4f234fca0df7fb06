"""Fleets of a million devices, which cost nothing until they are touched."""

import pytest
from tiny_run import read_rows, read_summary, start, tiny_config

from mest_fed.client.capability import GIVEN, GIVEN_PEAK
from mest_fed.errors import InputError
from mest_fed.simulation.engine.interfaces import node_id_of
from mest_fed.simulation.fleet import Fleet
from mest_fed.simulation.settings import resolve
from mest_fed.task import Task

MILLION = {
    "data": {"partition": "sampled", "examples_per_device": 20},
    "fleet": {"devices": 1_000_000, "mix": "rpi-4:3, rpi-5:1"},
}


@pytest.fixture(scope="module")
def fleet():
    return Fleet.of(Task(tiny_config(**MILLION)))


def test_a_fleet_agrees_with_itself(fleet):
    plan = fleet.plans["rpi-5"]
    nodes = fleet.nodes({plan: 12_345})
    assert {tier.profile.name: tier.clients for tier in fleet.tiers} == {
        "rpi-4": 750_000,
        "rpi-5": 250_000,
    }
    for partition in (0, 1, 2, 3, 999_999):
        node = nodes[node_id_of(partition)]
        device = fleet.devices[partition]
        assert fleet.profiles[node.node_id].name == node.node_config["device"] == device
        assert node.node_config[GIVEN] == fleet.plans[device].as_json()
        assert node.node_config.get(GIVEN_PEAK) == (12_345 if device == "rpi-5" else None)
        assert node.node_config["num-partitions"] == 1_000_000
        predicted = fleet.plans["rpi-4"].footprint.total
        assert node.memory == (12_345 if device == "rpi-5" else predicted)
    assert len(fleet.profiles) == 1_000_000
    assert next(iter(fleet.profiles)) == node_id_of(0)
    for stranger in (node_id_of(-1), node_id_of(1_000_000)):
        with pytest.raises(KeyError):
            fleet.profiles[stranger]


def test_examples_are_those_of_a_smaller_fleet(fleet):
    large = Task(tiny_config(**MILLION))
    small = Task(tiny_config(**MILLION | {"fleet": {"devices": 5}}))
    for partition in range(5):
        for one, other in zip(large.examples(partition), small.examples(partition), strict=True):
            assert one.tolist() == other.tolist()
    training, held = large.examples(999_999)
    assert (len(training), len(held)) == (18, 2) == large.example_counts(999_999)


def test_more_examples_than_there_are_refuse_the_run():
    data = {"partition": "sampled", "examples_per_device": 1439}
    with pytest.raises(InputError, match=r"data\.examples_per_device = 1439 .* allowed: 1 to 1438"):
        _ = Task(tiny_config(data=data)).partitions


@pytest.mark.soak
def test_a_million_devices_train(tmp_path):
    folder = start(tmp_path / "run", tiny_config(**MILLION))
    summary, clients = read_summary(folder), read_rows(folder, "clients")
    assert sum(tier["clients"] for tier in summary["tiers"]) == 1_000_000
    assert summary["clients_trained"] == len(clients) == 9
    assert len({row["partition"] for row in clients}) == 9
    assert {row["examples"] for row in clients} == {18}
    assert not (folder / "partitions.npz").exists()
    again = start(tmp_path / "again", tiny_config(**MILLION))
    assert read_summary(again)["model_sha256"] == summary["model_sha256"]


def test_counts_are_those_of_the_examples_that_are_listed():
    task = Task(tiny_config())
    for partition in range(12):
        training, held = task.examples(partition)
        assert task.example_counts(partition) == (len(training), len(held))


def test_the_preset_of_a_million_devices(tmp_path):
    less = ["run.rounds=2", "server.clients_per_round=12", "training.local_epochs=1"]
    _, config = resolve("million", None, less)
    assert config.fleet.devices == 1_000_000
    rows = read_rows(start(tmp_path / "run", config), "clients")
    assert len(rows) == 24
    assert "away" not in {row["status"] for row in rows}  # only who is there is selected
