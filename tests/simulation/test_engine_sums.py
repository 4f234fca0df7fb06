"""Sums in the workers: the same bits on any number of them, and late replies left out."""

import logging
from dataclasses import dataclass

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from tiny_run import assert_same_on_workers, read_rows, start, tiny_config

from mest_fed.server.aggregation.averaging import SummedFedAvg, WorkerSums
from mest_fed.server.flower_internals import (
    NODE_UNAVAILABLE,
    claim_identity,
    error_reply,
    run_server_app,
)
from mest_fed.simulation.engine.executor import SerialExecutor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import TaskResult, make_nodes

logging.getLogger("flwr").setLevel(logging.ERROR)

FLEET = {"devices": 12, "mix": "rpi-4:2, rpi-zero-2w:1, jetson-nano:1", "deadline": 0.15}
RUNS = {
    # Sums, with devices that are late and then busy, or away.
    "server": {
        "sparsity": {"method": "mest-ems", "scheme": "block", "density": 0.2},
        "behaviour": {"dropout": 0.2, "compute_jitter": 0.5, "process_per_message": False},
    },
    # Client by client, since clients move their masks.
    "client": {
        "sparsity": {"method": "mest-em", "mutation": "client", "scheme": "unstructured"},
        "wire": {"upload": "int8"},
        "behaviour": {"process_per_message": False},
    },
}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
@pytest.mark.parametrize("kind", ["server", pytest.param("client", marks=pytest.mark.soak)])
def test_any_number_of_workers_ends_with_the_same_bits(session, kind, workers, tmp_path):
    config = tiny_config(fleet=FLEET, server={"clients_per_round": 7}, **RUNS[kind])
    serial = start(tmp_path / "serial", config)
    statuses = {row["status"] for row in read_rows(serial, "clients")}
    assert {"ok", "late"} <= statuses
    assert_same_on_workers(serial, workers, tmp_path / "parallel")


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Add the partition to the weights; partition n has n + 1 examples."""
    partition = int(context.node_config["partition-id"])
    weights = message.content["arrays"]["w"].numpy()
    metrics = {"num-examples": partition + 1, "loss": float(partition)}
    content = {
        "arrays": ArrayRecord({"w": Array(weights + np.float32(partition))}),
        "metrics": MetricRecord(metrics),
    }
    return Message(RecordDict(content), reply_to=message)


@dataclass(frozen=True)
class LateAt:
    """TaskConditions under which some nodes reply too late, and one refuses."""

    node_id: int
    number: int = 0

    @property
    def refusal(self):
        return "away" if self.node_id == 1004 else None

    def at_least(self, instruction):
        return 0.0

    def resolve(self, instruction, reply):
        if self.node_id in (1001, 1003):
            late = error_reply(instruction, NODE_UNAVAILABLE, "late")
            return TaskResult(late, 5.0, keeps_state=False, busy_seconds=9.0)
        return TaskResult(reply, 1.0)


class LateReply:
    """Time of a fleet in which nodes 1001 and 1003 are late."""

    now = 0.0

    def draw_conditions(self, instruction, *, start, within, number=None):
        return LateAt(instruction.metadata.dst_node_id)

    def record(self, task_result):
        pass


def run(strategy, *, nodes=6, simulator=None, rounds=1):
    """Run a strategy from weights of 0; return the weights in the end."""
    grid = EngineGrid(make_nodes(nodes), SerialExecutor(app), simulator=simulator)
    results = []
    server = ServerApp()

    @server.main()
    def main(grid, context):
        arrays = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
        results.append(strategy.start(grid, arrays, num_rounds=rounds))

    run_server_app(server, grid)
    return results[0].arrays["w"].numpy(), results[0]


def options(nodes=6):
    return {"fraction_evaluate": 0.0, "min_available_nodes": nodes, "min_train_nodes": nodes}


def test_a_late_or_absent_client_is_not_in_the_sum():
    # Partitions 0, 2 and 5 with 1, 3 and 6 examples: (0*1 + 2*3 + 5*6) / 10.
    weights, result = run(SummedFedAvg(**options()), simulator=LateReply())
    assert weights.tolist() == [np.float32(3.6)] * 3
    # Of the losses, too: they are the partitions.
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(3.6)


class SummedFedAdam(WorkerSums, FedAdam):
    """Of Flower, with sums."""


@pytest.mark.parametrize(("stock", "summed"), [(FedAvg, SummedFedAvg), (FedAdam, SummedFedAdam)])
def test_summed_strategies_do_as_their_parents(stock, summed):
    expected, before = run(stock(**options(11)), nodes=11, rounds=3)
    weights, after = run(summed(**options(11)), nodes=11, rounds=3)
    assert np.ptp(expected) == 0
    assert expected[0] > 0.1
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    for number in (1, 2, 3):
        mine, theirs = (r.train_metrics_clientapp[number] for r in (after, before))
        assert mine["loss"] == pytest.approx(theirs["loss"])


@pytest.mark.soak
def test_the_mean_of_whole_numbers_is_a_fraction_as_in_the_parent():
    counts = ArrayRecord({"seen": Array(np.array([0, 4]))})
    claim_identity(1)
    grid, offered = EngineGrid(make_nodes(2), SerialExecutor(app)), []
    asked = Message(RecordDict(), 1000, "train")

    def replies():
        for seen, examples in ((1, 1), (2, 3)):
            record = ArrayRecord({"seen": Array(np.array([seen, 4]))})
            metrics = MetricRecord({"num-examples": examples})
            yield Message(RecordDict({"a": record, "m": metrics}), reply_to=asked)

    strategy = SummedFedAvg(**options(2))
    grid.sum_in_workers = offered.append
    strategy.configure_train(1, counts, ConfigRecord(), grid)
    (aggregator,) = offered
    (first, left), (second, other) = map(aggregator.map, replies())
    aggregator.finalize(first.add(second))
    summed, _ = strategy.aggregate_train(1, [left, other])
    stock, _ = FedAvg().aggregate_train(1, list(replies()))
    np.testing.assert_array_equal(summed["seen"].numpy(), [1.75, 4.0])
    np.testing.assert_array_equal(stock["seen"].numpy(), [1.75, 4.0])
