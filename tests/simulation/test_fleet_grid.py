"""FleetGrid in a script: few lines, with devices or without, the same bits on any workers."""

import gc
import inspect
import logging
import random
import textwrap

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from mest_fed import FleetGrid
from mest_fed.config.fleet import FleetConfig
from mest_fed.devices import load_profile
from mest_fed.errors import InputError

logging.getLogger("flwr").setLevel(logging.ERROR)

app = ClientApp()


@app.train()
def train(message, context):
    partition = context.node_config["partition-id"]
    print("training on", context.node_config.get("device", "no device"))
    arrays = [array.numpy() + partition for array in message.content["arrays"].values()]
    metrics = MetricRecord({"num-examples": 10, "loss": 1.0 / (1 + partition)})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def play(devices, **options):
    random.seed(7)  # Flower's strategies draw the order of the nodes
    arrays = ArrayRecord([np.zeros(1000, np.float32)])
    with FleetGrid(app, devices=devices, **options) as grid:
        result = FedAvg().start(grid, initial_arrays=arrays, num_rounds=2)
        return result, grid.now


def test_ten_lines_train_with_devices_in_virtual_time():
    result, now = play({"rpi-4": 2, "phone-low": 2})
    assert result.arrays["0"].numpy()[0] == 2 * 1.5  # the mean of 0, 1, 2 and 3, twice
    assert result.evaluate_metrics_clientapp[2]["accuracy"] == 0.5
    # Four times the start of a process, 4 kB down and up in two rounds over 3.2 Mbit/s, and four
    # times there and back.
    started = 4 * max(load_profile(name).message_seconds for name in ("rpi-4", "phone-low"))
    assert started + 0.08 * 4 < now < started + 1


def test_the_lines_of_the_docstring_run(capsys):
    lines = textwrap.dedent(inspect.getdoc(FleetGrid).partition("::\n")[2].partition("Results")[0])
    code = lines.replace("workers=2", "workers=0")
    exec(code, {"client_app": app, "arrays": ArrayRecord([np.zeros(1000, np.float32)])})
    assert "virtual seconds" in capsys.readouterr().out
    assert len(lines.strip().splitlines()) <= 10


def test_without_devices_no_time_passes():
    assert play(3)[1] == 0.0


@pytest.mark.soak
@pytest.mark.ray
def test_workers_give_the_same_bits():
    result, now = play({"rpi-4": 2, "phone-low": 2}, workers=2)
    gc.collect()
    alone, alone_now = play({"rpi-4": 2, "phone-low": 2})
    assert (result.arrays, now) == (alone.arrays, alone_now)
    assert result.train_metrics_clientapp == alone.train_metrics_clientapp


def test_what_clients_print_is_shown_if_asked(capsys):
    play({"rpi-4": 1, "phone-low": 1}, show_clients=True)
    assert "node 1000: training on phone-low" in capsys.readouterr().err
    play({"rpi-4": 1, "phone-low": 1})
    assert capsys.readouterr() == ("", "")


def fleet(**sections):
    return FleetConfig.model_validate(
        {
            "fleet": {"devices": 2, "mix": "rpi-4:1"},
            "behaviour": {"availability": "always"},
            **sections,
        }
    )


def test_work_counts_by_the_examples_that_a_client_reports():
    _, quick = play(fleet())
    _, slow = play(fleet(work={"flops_per_example": 11.5e8}))
    # 10 examples at 11.5 GFLOP/s take 1 s to train and a third of it to evaluate.
    assert slow - quick == pytest.approx(2 * (1 + 1 / 3))


def test_a_device_without_the_memory_refuses_to_train():
    ask = [Message(RecordDict(), node, "train") for node in (1000, 1001)]
    for message in ask:
        message.content["arrays"] = ArrayRecord([np.zeros(3, np.float32)])
        message.content["config"] = ConfigRecord()
    with FleetGrid(app, devices=fleet(work={"memory": "300MB"})) as grid:
        replies = list(grid.send_and_receive(ask))
    assert all("out of memory: training takes 300 MB" in r.error.reason for r in replies)
    with FleetGrid(app, devices=fleet(work={"memory": "200MB"})) as grid:
        assert not any(reply.has_error() for reply in grid.send_and_receive(ask))


@pytest.mark.parametrize(
    ("devices", "line"),
    [
        (0, "num_partitions = 0 is not allowed"),
        ({"rpi-4": 0}, r"devices\['rpi-4'\] = 0 is not allowed"),
        ({}, "devices = {} is not allowed"),
        ({"rpi-9": 1}, "rpi-9"),
        ("none.toml", "no such file: none.toml"),
        (
            FleetConfig.model_validate({"behaviour": {"memory_pressure": 0.1}}),
            "behaviour.memory_pressure = 0.1 is not allowed; allowed: 0, or work.memory",
        ),
        (
            FleetConfig.model_validate({"fleet": {"mix": "rpi-4:1", "budgets": "rpi-5:1MB"}}),
            "fleet.budgets names rpi-5; allowed: rpi-4",
        ),
    ],
)
def test_wrong_devices_are_one_line(devices, line):
    with pytest.raises(InputError, match=line):
        FleetGrid(app, devices=devices)


@pytest.mark.parametrize("attribute", ["app", "none", "train"])
def test_a_client_app_in_a_file(attribute, tmp_path, monkeypatch):
    text = "from flwr.clientapp import ClientApp\napp = ClientApp()\ntrain = 3\n"
    (tmp_path / "capp.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    reference = f"capp.py:{attribute}"
    if attribute == "app":
        with FleetGrid(reference, devices=2) as grid:
            assert len(grid.get_node_ids()) == 2
        return
    with pytest.raises(InputError, match=r"capp\.py:.*(has no attribute|not a ClientApp)"):
        FleetGrid(reference, devices=2)
