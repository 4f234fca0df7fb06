"""What clients print and raise: in the log of the run, with the node; a traceback once."""

import gc
import logging
import subprocess
import sys

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from mest_fed.simulation.engine.executor import make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import make_nodes

app = ClientApp()


@app.train()
def train(message, context):
    return read_image({"image": 1})


def read_image(row):
    return row["img"]


@pytest.mark.soak
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_a_traceback_is_logged_once(workers, caplog):
    executor = make_executor("test_engine_tracebacks:app", workers)
    try:
        grid = EngineGrid(make_nodes(5), executor)
        messages = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
        with caplog.at_level(logging.WARNING, "mest_fed.run"):
            replies = list(grid.send_and_receive(messages))
    finally:
        executor.close()
        gc.collect()  # what Ray left open is closed here, where that is no error
    assert [reply.error.reason for reply in replies] == ["KeyError: 'img'"] * 5
    (record,) = [record for record in caplog.records if "raised" in record.getMessage()]
    text = record.getMessage()
    assert 'return row["img"]' in text
    assert text.endswith("KeyError: 'img'")


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *rest: None if name == "ray" else find(name, *rest)
from mest_fed.cli import main
sys.argv = ["mest-fed", "simulate", *sys.argv[1:]]
main()
"""


@pytest.mark.soak
@pytest.mark.slow
def test_no_workers_need_no_ray(tmp_path):
    options = ["--set", "run.rounds=1", "--set", "fleet.devices=3", "--set", "fleet.mix=rpi-4:1"]
    options += ["--set", "server.clients_per_round=2", "--set", "fleet.budgets=", "--quiet"]
    command = [sys.executable, "-c", WITHOUT_RAY, *options, "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, "--workers", "0"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "report.html").exists()
    done = subprocess.run([*command[:-1], str(tmp_path / "other")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "ray is not installed" in done.stderr


@app.query()
def talk(message, context):
    print("partition", context.node_config["partition-id"])
    print("short of data", file=sys.stderr)
    assert sys.stdout.encoding.lower() == "utf-8"
    sys.stdout.buffer.flush()
    logging.getLogger("flwr").info("in Flower's log")
    if context.node_config["partition-id"] == 1:
        print("x" * 20_000)
    if context.node_config["partition-id"] == 2:
        raise ValueError("too little")
    return Message(RecordDict(), reply_to=message)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.ray)])
def test_what_clients_print_is_logged_with_their_nodes_in_order(workers, caplog, capsys):
    executor = make_executor("test_engine_tracebacks:app", workers)
    try:
        grid = EngineGrid(make_nodes(4), executor)
        messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        with (
            caplog.at_level(logging.INFO, "mest_fed.run.clients"),
            caplog.at_level(logging.INFO, "flwr"),
        ):
            replies = list(grid.send_and_receive(messages))
    finally:
        executor.close()
        gc.collect()
    assert sum(reply.has_error() for reply in replies) == 1
    logged = [r for r in caplog.records if r.name in ("mest_fed.run.clients", "mest_fed.run")]
    assert [r.getMessage().split("\n")[0] for r in logged] == [
        "node 1000: partition 0",
        "node 1001: partition 1",
        "node 1002: partition 2",
        "the client of node 1002 raised an error:",
        "node 1003: partition 3",
    ]
    texts = [r.getMessage() for r in logged]
    assert "short of data" in texts[0]
    assert "in Flower's log" in texts[0]
    assert len(texts[1]) < 17_000
    assert "more characters)" in texts[1]
    assert capsys.readouterr() == ("", "")
