"""Capability: which device a client is, what it may use, and what it tells the server."""

import logging

import numpy as np
import pytest
from client_parts import NODE_ID, context_of, instruction, small_config, start_of, task_of
from flwr.app import Message, RecordDict

from mest_fed.client.app import app
from mest_fed.client.capability import capability_of, task_of_node
from mest_fed.devices import load_profile
from mest_fed.errors import InputError
from mest_fed.kernels import torch_threads

CONFIG = small_config()
#: A budget in which the scratch memory of each thread counts.
TIGHT = 2_600_000


def capability(partition=0, config=CONFIG, **node):
    return capability_of(task_of(config), context_of(config, partition, **node))


def test_the_fleet_says_which_device_a_client_is():
    devices = [capability(partition).device for partition in range(4)]
    assert sorted(devices) == ["jetson-nano", "jetson-nano", "rpi-4", "rpi-4"]
    for partition, device in enumerate(devices):
        assert capability(partition).budget == load_profile(device).budget_bytes


def test_the_node_config_replaces_the_device():
    client = capability(device="rpi-zero-2w")
    assert client.device == "rpi-zero-2w"
    assert client.budget == load_profile("rpi-zero-2w").budget_bytes


@pytest.mark.parametrize(("nodes", "refused"), [(3, True), (4, False), (5, False)])
def test_a_simulation_needs_a_node_for_each_device(nodes, refused):
    context = context_of(CONFIG, **{"num-partitions": nodes})
    reply = app(Message(RecordDict(), NODE_ID, "query"), context)
    assert reply.has_error() == refused
    if refused:
        assert reply.error.reason == (
            "num-partitions = 3 is not allowed (node config); allowed: at least 4 "
            "(fleet.devices = 4); of flwr run: --federation-config num-supernodes=4"
        )


def own_file(folder, count=30):
    images = np.random.default_rng(2).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    np.savez(folder / "own.npz", images=images, labels=np.arange(count) % 10)
    return str(folder / "own.npz")


def of_node(context):
    return capability_of(task_of_node(context), context)


def test_a_node_with_examples_of_its_own_needs_no_partition(tmp_path):
    context = context_of(CONFIG, data=own_file(tmp_path), device="rpi-4")
    del context.node_config["partition-id"]
    client = of_node(context)
    assert client.partition == 4 + NODE_ID  # after those of the fleet
    told = app(Message(RecordDict(), NODE_ID, "query"), context).content["capability"]
    assert (told["examples"], told["held-out"]) == (27, 3)
    reply = app(instruction(CONFIG, start_of(CONFIG)), context)
    assert reply.content["metrics"]["presented"] == 27


def test_examples_of_another_scale_are_warned_of_when_the_server_asks(tmp_path, caplog):
    caplog.set_level(logging.INFO, "flwr")
    wrong = np.random.default_rng(2).integers(0, 3, (30, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "dark.npz", images=wrong, labels=np.arange(30) % 10)
    for place, warned in ((own_file(tmp_path), False), (str(tmp_path / "dark.npz"), True)):
        context = context_of(CONFIG, data=place, device="rpi-4")
        del context.node_config["partition-id"]
        caplog.clear()
        assert not app(Message(RecordDict(), NODE_ID, "query"), context).has_error()
        assert ("scale is far from the run's" in caplog.text) == warned


def test_the_runs_data_set_elsewhere():
    config = small_config(data={"name": "cifar10", "path": "/not/here"})
    task = task_of_node(context_of(config, 1, data="/but/there"))
    assert task.config.data.path == "/but/there"
    assert task_of_node(context_of(config, 1)).config.data.path == "/not/here"


def test_a_data_set_without_files_is_nowhere_else(tmp_path):
    with pytest.raises(InputError, match=r"data \(of this node\) = .*'digits' has no files"):
        of_node(context_of(CONFIG, 1, data=own_file(tmp_path)))


def test_own_examples_that_do_not_fit_are_named(tmp_path):
    config = small_config(data={"name": "cifar10"})
    context = context_of(config, data=own_file(tmp_path))
    del context.node_config["partition-id"]
    with pytest.raises(InputError, match=r"inputs are uint8, 1 x 8 x 8; allowed: uint8, 3 x 32"):
        app(Message(RecordDict(), NODE_ID, "query"), context)


@pytest.mark.parametrize("budget", ["90MB", 90_000_000, "90000000"])
def test_the_node_config_replaces_the_budget(budget):
    client = capability(device="rpi-4", budget=budget)
    assert (client.device, client.budget) == ("rpi-4", 90_000_000)
    assert client.plan.footprint.total <= 90_000_000


def test_the_run_replaces_the_budget_of_a_profile():
    config = small_config(fleet={"mix": "rpi-4:1", "budgets": "rpi-4:90MB"})
    assert capability(config=config).budget == 90_000_000
    assert capability(config=config, budget="80MB").budget == 80_000_000


def test_a_small_budget_gives_a_smaller_plan():
    large = capability(budget="500MB").plan
    assert (large.density, large.micro_batch) == (0.2, 64)
    small = capability(budget=large.footprint.total - 1).plan
    assert small.micro_batch < 64
    assert small.footprint.total < large.footprint.total


@pytest.mark.parametrize("partition", [-1, 4, "0", None, 1.0])
def test_a_wrong_partition(partition):
    with pytest.raises(InputError, match=r"partition-id = .* \(node config\); allowed: 0 to 3"):
        capability(partition)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"budget": "a lot"}, "budget = 'a lot'"),
        ({"budget": -5}, "budget = '-5'"),
        ({"budget": "2kB"}, "fits no plan; the smallest needs"),
        ({"device": "toaster"}, "device profile = 'toaster'"),
    ],
)
def test_a_wrong_node_config(node, message):
    with pytest.raises(InputError, match=message):
        capability(**node)


def test_what_a_client_reports():
    reply = app(Message(RecordDict(), NODE_ID, "query"), context_of(CONFIG, 2, device="rpi-4"))
    assert list(reply.content) == ["capability"]
    told = dict(reply.content["capability"])
    plan, (training, held) = capability(2, device="rpi-4").plan, task_of(CONFIG).examples(2)
    assert told == {
        "partition": 2,
        "device": "rpi-4",
        "budget": load_profile("rpi-4").budget_bytes,
        "density": 0.2,
        "micro-batch": 64,
        "predicted-peak": plan.footprint.total,
        "examples": len(training),
        "held-out": len(held),
        "frozen": 0,
    }


def test_a_dense_client_holds_all_weights():
    config = small_config(sparsity={"method": "dense"})
    assert capability(config=config).plan.density == 1.0


@pytest.mark.parametrize("threads", [1, 3])
def test_a_device_plans_for_its_own_threads(threads):
    config = small_config(model={"width": 1.0})
    with torch_threads(threads):
        who = capability_of(task_of(config), context_of(config, budget=TIGHT))
    assert who.plan == task_of(config).plan(who.budget, who.device, threads)
    other = task_of(config).plan(who.budget, who.device, threads + 1)
    assert other.footprint != who.plan.footprint


def test_a_device_that_gets_other_threads_plans_anew():
    config = small_config(model={"width": 1.0})
    context = context_of(config, budget=TIGHT)
    plans = []
    for threads in (1, 2, 1):
        with torch_threads(threads):
            plans.append(capability_of(task_of(config), context).plan)
    assert plans[0] == plans[2]
    assert plans[0].footprint != plans[1].footprint
