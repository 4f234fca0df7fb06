"""Devices do not send what they keep frozen: the bits are those of a run in which they do."""

from unittest.mock import patch

import pytest
from tiny_run import read_rows, read_summary, start, tiny_config

from mest_fed.cli.planning.traffic import StartingModel
from mest_fed.client import handlers
from mest_fed.task import Task

FORMS = {
    "dense": {"sparsity": {"method": "dense"}},
    "sparse, error feedback": {
        "sparsity": {"method": "mest-ems", "density": 0.3},
        "wire": {"upload": "int8"},
    },
    "clients mutate in some rounds": {
        "sparsity": {"method": "mest-em", "mutation": "client", "period": 0.5},
    },
    "buffered": {"server": {"mode": "buffered", "concurrency": 4, "buffer": 2}},
}


def config_of(form, frozen=2, **more):
    sections = {"model": {"name": "resnet8", "norm": "group"}, "memory": {"frozen": frozen}}
    return tiny_config(**sections, **FORMS[form], **more)


@pytest.mark.parametrize("form", FORMS)
def test_the_bits_are_the_same_and_the_bytes_fewer(form, tmp_path):
    config = config_of(form)
    partly = start(tmp_path / "partly", config)
    write = handlers.write_update

    def write_all(*given, frozen, **how):
        return write(*given, **how)

    with patch.object(handlers, "write_update", write_all):
        wholly = start(tmp_path / "wholly", config)
    one, two = read_summary(partly), read_summary(wholly)
    assert one["model_sha256"] == two["model_sha256"]
    assert one["clients_failed"] == one["clients_rejected"] == 0
    assert one["bytes_up"] < two["bytes_up"]
    assert one["bytes_down"] == two["bytes_down"]


def test_what_is_forecast_is_what_is_sent(tmp_path):
    config = config_of("dense", run={"rounds": 1})
    task = Task(config)
    plan = task.fleet_plans()["rpi-4"]
    assert plan.memory.frozen == 2
    up = StartingModel(task).traffic(plan, 32)[0].up
    rows = read_rows(start(tmp_path / "run", config), "clients")
    sent = {row["bytes_up"] for row in rows if row["train_loss"] is not None}
    assert all(0 <= size - up < 600 for size in sent)  # the metrics come on top
    none = Task(config_of("dense", frozen=0))
    assert StartingModel(none).traffic(none.fleet_plans()["rpi-4"], 32)[0].up > up
