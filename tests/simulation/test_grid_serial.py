"""EngineGrid in one process: order, isolation, state, errors, and Flower's own apps."""

import gc
import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.compat.server import ServerAppComponents
from flwr.server import ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result
from grid_apps import app, model, to_all

from mest_fed.errors import InputError
from mest_fed.kernels import torch_threads
from mest_fed.server.flower_internals import run_server_app
from mest_fed.simulation.engine.executor import SerialExecutor, make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import FleetNode, NodeKind, make_nodes, node_id_of

logging.getLogger("flwr").setLevel(logging.ERROR)


@pytest.fixture
def grid() -> EngineGrid:
    return EngineGrid(make_nodes(5), SerialExecutor(app), stream=True)


def test_nodes_have_the_same_ids_in_every_run() -> None:
    nodes = make_nodes(2, lambda partition: NodeKind({"device": "ab"[partition]}, 2.0, 500))
    assert list(nodes.node_ids) == [node_id_of(0), node_id_of(1)] == [1000, 1001]
    place = {"partition-id": 1, "num-partitions": 2}
    assert nodes[1001] == FleetNode(1001, {"device": "b", **place}, cost=2.0, memory=500)
    assert 1001 in nodes
    for stranger in (999, 1002):
        assert stranger not in nodes
        with pytest.raises(KeyError):
            nodes[stranger]
    with pytest.raises(InputError, match="num_partitions = 0"):
        make_nodes(0)


def test_replies_come_in_message_order(grid: EngineGrid) -> None:
    messages = to_all(grid, model(), "train")[::-1]
    replies = list(grid.send_and_receive(messages))
    assert [reply.metadata.src_node_id for reply in replies] == [1004, 1003, 1002, 1001, 1000]
    sent = [message.metadata.message_id for message in messages]
    assert [reply.metadata.reply_to_message_id for reply in replies] == sent
    assert len({reply.metadata.message_id for reply in replies} | set(sent)) == 10


def test_clients_run_only_as_replies_are_read(grid: EngineGrid) -> None:
    taken = []

    def messages() -> Iterator[Message]:
        for node_id in grid.get_node_ids():
            taken.append(node_id)
            yield Message(model(), node_id, "train")

    replies = grid.send_and_receive(messages())
    assert taken == []
    next(replies)
    assert len(taken) <= 2
    replies.close()
    assert set(grid.states) == {1000}


def test_replies_that_were_read_cannot_silently_be_read_again(grid: EngineGrid) -> None:
    replies = grid.send_and_receive(to_all(grid, model(), "train"))
    assert len(list(replies)) == 5
    with pytest.raises(RuntimeError, match="stream=False"):
        list(replies)


def test_without_streaming_clients_run_at_once_and_replies_are_a_list() -> None:
    grid = EngineGrid(make_nodes(5), SerialExecutor(app))
    replies = grid.send_and_receive(to_all(grid, model(), "train"))
    assert len(replies) == len(list(replies)) == len(list(replies)) == 5
    assert len(grid.states) == 5


def test_a_client_cannot_change_what_others_get(grid: EngineGrid) -> None:
    content = model()
    list(grid.send_and_receive(to_all(grid, content, "train")))  # each clears its arrays
    assert content == model()
    replies = list(grid.send_and_receive(to_all(grid, content, "evaluate")))
    assert {reply.content["metrics"]["lr"] for reply in replies} == {0.5}


def test_state_stays_with_its_client_over_rounds(grid: EngineGrid) -> None:
    ids = grid.get_node_ids()
    list(grid.send_and_receive([Message(model(), ids[0], "train")]))
    replies = list(grid.send_and_receive(to_all(grid, model(), "train")))
    assert [reply.content["metrics"]["rounds"] for reply in replies] == [2, 1, 1, 1, 1]


def test_a_node_may_get_several_messages_in_one_exchange(grid: EngineGrid) -> None:
    messages = [Message(model(), 1000 + i, "train") for i in (0, 1, 0, 0, 1)]
    replies = list(grid.send_and_receive(messages))
    assert [reply.content["metrics"]["rounds"] for reply in replies] == [1, 1, 2, 3, 2]


def test_a_client_that_raises_gives_one_line_and_keeps_its_state(grid: EngineGrid) -> None:
    list(grid.send_and_receive(to_all(grid, model(), "train")))
    replies = list(grid.send_and_receive(to_all(grid, model(), "query.fail")))
    assert [reply.error.reason for reply in replies] == [
        f"ValueError: no data in partition {i}" for i in range(5)
    ]
    assert {reply.error.code for reply in replies} == {2}
    assert grid.states[1003] == RecordDict({"seen": MetricRecord({"rounds": 1})})


def test_a_client_that_exits_or_returns_nothing_gives_an_error(grid: EngineGrid) -> None:
    first, second, *_ = grid.send_and_receive(to_all(grid, model(), "query.odd"))
    assert first.error.reason == "SystemExit: leaving"
    assert second.error.reason == "TypeError: the ClientApp returned None, not a Message"


def test_a_message_to_an_unknown_node_gives_an_error(grid: EngineGrid) -> None:
    (reply,) = grid.send_and_receive([Message(model(), 7, "train")])
    assert (reply.error.code, reply.error.reason) == (5, "there is no node 7")


def test_torch_has_its_threads_back_after_a_client(grid: EngineGrid) -> None:
    with torch_threads(2):
        list(grid.send_and_receive(to_all(grid, model(), "train")))
        assert torch.get_num_threads() == 2


def test_pushed_messages_run_at_the_next_pull(grid: EngineGrid) -> None:
    ids = grid.push_messages(to_all(grid, model(), "train"))
    assert grid.states == {}
    (reply,) = grid.pull_messages([ids[3]])
    assert reply.metadata.src_node_id == 1003
    assert len(grid.states) == 5
    rest = grid.pull_messages(ids)
    assert [reply.metadata.src_node_id for reply in rest] == [1000, 1001, 1002, 1004]
    assert grid.pull_messages(ids) == []


def test_grid_says_who_and_what_it_is(grid: EngineGrid) -> None:
    assert grid.run.run_id == 1
    assert [info.node_id for info in grid.get_nodes()] == list(grid.get_node_ids())
    message = grid.create_message(model(), "train", 1002, "3", ttl=60.0)
    metadata = message.metadata
    assert (metadata.dst_node_id, metadata.group_id, metadata.ttl) == (1002, "3", 60.0)


def test_an_interrupt_is_no_failure_of_the_client() -> None:
    interrupted = ClientApp()

    @interrupted.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    grid = EngineGrid(make_nodes(1), SerialExecutor(interrupted))
    with pytest.raises(KeyboardInterrupt):
        list(grid.send_and_receive(to_all(grid, model(), "train")))


@pytest.mark.soak
def test_nothing_of_an_exchange_is_kept_but_states(grid: EngineGrid) -> None:
    def count() -> int:
        gc.collect()
        return sum(type(thing) is Message for thing in gc.get_objects())

    before = count()
    for _ in range(3):
        for reply in grid.send_and_receive(to_all(grid, model(), "train")):
            assert reply.has_content()
        grid.pull_messages(grid.push_messages(to_all(grid, model(), "train")))
    del reply
    assert count() == before


def test_client_app_by_name() -> None:
    grid = EngineGrid(make_nodes(1), make_executor("grid_apps:app", 0))
    (reply,) = grid.send_and_receive(to_all(grid, model(), "evaluate"))
    assert reply.content["metrics"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "grid_apps:nothing",
            "'grid_apps:nothing': grid_apps has no attribute 'nothing'",
        ),
        (
            "no_such_module:app",
            "'no_such_module:app': cannot import no_such_module: ModuleNotFound",
        ),
        ("grid_apps", "cannot load the ClientApp 'grid_apps': "),
        ("grid_apps:np", "'grid_apps:np' is a module, not a ClientApp"),
    ],
)
def test_wrong_client_app_is_an_input_error(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        SerialExecutor(name)


def test_wrong_number_of_workers_is_an_input_error() -> None:
    with pytest.raises(InputError, match="workers = -1 is not allowed"):
        make_executor(app, -1)


def test_flowers_fedavg_runs_unchanged() -> None:
    grid = EngineGrid(make_nodes(4), SerialExecutor(app))
    results: list[Result] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        rounds = int(context.run_config["num-server-rounds"])
        arrays = ArrayRecord({"w": Array(np.zeros(300, np.float32))})
        config = ConfigRecord({"lr": 0.1})
        strategy = FedAvg()
        results.append(
            strategy.start(grid, arrays, rounds, train_config=config, evaluate_config=config.copy())
        )

    run_server_app(server_app, grid, run_config={"num-server-rounds": 8})
    (result,) = results
    losses = [result.train_metrics_clientapp[i]["loss"] for i in range(1, 9)]
    assert losses == sorted(losses, reverse=True)
    # The plain average, weighted by examples, of what the four clients make of the same model.
    grid = EngineGrid(make_nodes(4), SerialExecutor(app))
    content = RecordDict({"arrays": _zeros(), "config": ConfigRecord({"lr": 0.1})})
    replies = list(grid.send_and_receive(to_all(grid, content, "train")))
    shares = [reply.content["metrics"]["num-examples"] / 406 for reply in replies]
    mean = sum(
        share * reply.content["arrays"]["w"].numpy()
        for share, reply in zip(shares, replies, strict=True)
    )
    first, _ = FedAvg().aggregate_train(1, replies)
    assert first is not None
    np.testing.assert_allclose(first["w"].numpy(), mean, rtol=1e-5)


def _zeros() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(300, np.float32))})


def test_flowers_older_apps_run_unchanged() -> None:
    class Client(NumPyClient):
        def __init__(self, partition: int) -> None:
            self.partition = partition

        def fit(self, parameters, config):
            return [parameters[0] + self.partition], 1, {}

    client_app = ClientApp(lambda context: _client(Client, context))
    final: list[np.ndarray] = []

    class Strategy(LegacyFedAvg):
        def aggregate_fit(self, server_round, results, failures):
            assert not failures
            parameters, metrics = super().aggregate_fit(server_round, results, failures)
            final.append(parameters)
            return parameters, metrics

    def server(context: Context) -> ServerAppComponents:
        from flwr.common import ndarrays_to_parameters

        initial = ndarrays_to_parameters([np.zeros(3)])
        strategy = Strategy(fraction_evaluate=0.0, initial_parameters=initial)
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

    grid = EngineGrid(make_nodes(5), SerialExecutor(client_app))
    run_server_app(ServerApp(server_fn=server), grid)
    from flwr.common import parameters_to_ndarrays

    # Flower's threads add the results in the order in which they come.
    np.testing.assert_allclose(parameters_to_ndarrays(final[-1])[0], [4.0, 4.0, 4.0], rtol=1e-12)


def _client(cls, context: Context):
    return cls(int(context.node_config["partition-id"])).to_client()
