"""Clients and the server reach each other by messages alone, on none, one and two workers."""

import gc
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, Message, RecordDict
from rude_apps import app, content

from mest_fed.simulation.engine.executor import Executor, make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import make_nodes

pytestmark = pytest.mark.ray

NODES = 5
NUMBERS = np.arange(8000, dtype=np.float32)
WORKERS = [0, *(pytest.param(it, marks=pytest.mark.soak) for it in (1, 2))]


@pytest.fixture(scope="module", params=WORKERS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    executor = make_executor(app, request.param)
    yield executor
    executor.close()
    gc.collect()


@pytest.fixture
def grid(executor: Executor) -> EngineGrid:
    return EngineGrid(make_nodes(NODES), executor, run_config={"lr": 0.1})


def exchange(grid: EngineGrid, kind: str, records: RecordDict) -> list[Message]:
    messages = [Message(records, node_id, f"query.{kind}") for node_id in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages))
    assert not any(reply.has_error() for reply in replies), replies[0].error
    return replies


def pulled(grid: EngineGrid, ids: list[str]) -> list[Message]:
    replies: list[Message] = []
    while len(replies) < len(ids):
        replies += grid.pull_messages(ids)
    return sorted(replies, key=lambda reply: ids.index(reply.metadata.reply_to_message_id))


@pytest.mark.soak
def test_what_the_server_draws_does_not_depend_on_clients_that_seed(grid: EngineGrid) -> None:
    def draws() -> tuple[object, ...]:
        # An odd number of normal draws: they are made in pairs, and one is kept.
        normal = np.random.normal()  # noqa: NPY002
        return random.random(), random.gauss(), normal, torch.rand(()).item()

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = draws(), draws()
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    first = draws()
    exchange(grid, "seed", RecordDict())
    assert (first, draws()) == expected


@pytest.mark.soak
def test_what_clients_draw_is_the_same_on_any_number_of_workers(grid: EngineGrid) -> None:
    drawn = []
    for _ in range(2):
        replies = exchange(grid, "draw", RecordDict())
        drawn += [tuple(reply.content["drawn"]["values"]) for reply in replies]
        exchange(grid, "seed", RecordDict())
    assert len(set(drawn)) == 2 * NODES  # each client in each round draws its own
    alone = EngineGrid(make_nodes(NODES), make_executor(app, 0))
    again = [tuple(r.content["drawn"]["values"]) for r in exchange(alone, "draw", RecordDict())]
    assert drawn[:NODES] == again


def test_what_a_client_edits_reaches_neither_server_nor_others(grid: EngineGrid) -> None:
    sent = content()
    for reply in exchange(grid, "edit", sent):
        np.testing.assert_array_equal(reply.content["arrays"]["w"].numpy(), 2 * NUMBERS)
        assert reply.content["config"]["values"] == [0, 1]
    np.testing.assert_array_equal(sent["arrays"]["w"].numpy(), NUMBERS)
    assert sent["config"]["values"] == [0]
    for place, reply in enumerate(exchange(grid, "kept", RecordDict())):
        assert dict(reply.content["seen"]) == {"lr": 0.1, "partition": place}


def test_what_the_server_edits_in_a_reply_does_not_reach_the_clients_state(
    grid: EngineGrid,
) -> None:
    for reply in exchange(grid, "edit", content()):
        reply.content["arrays"]["w"].data = b""
        reply.content["arrays"].clear()
    for reply in exchange(grid, "kept", RecordDict()):
        np.testing.assert_array_equal(reply.content["arrays"]["w"].numpy(), 2 * NUMBERS)
        reply.content["arrays"].clear()
    for reply in exchange(grid, "kept", RecordDict()):
        np.testing.assert_array_equal(reply.content["arrays"]["w"].numpy(), 2 * NUMBERS)


def test_what_the_server_edits_after_a_push_does_not_reach_the_clients(grid: EngineGrid) -> None:
    records, ids = content(), []
    for number in range(3):
        records["arrays"]["w"] = Array(NUMBERS + number)
        ids += grid.push_messages([Message(records, 1000 + number, "query.echo")])
        records["arrays"]["w"].data = Array(-NUMBERS).data  # as a server that aggregates in place
    for number, reply in enumerate(pulled(grid, ids)):
        np.testing.assert_array_equal(reply.content["arrays"]["w"].numpy(), NUMBERS + number)


def test_a_message_that_is_pushed_twice_is_answered_twice(grid: EngineGrid) -> None:
    messages = [Message(content(), node_id, "query.echo") for node_id in (1000, 1001)]
    first, retry = grid.push_messages(messages), grid.push_messages(messages)
    assert len({*first, *retry}) == 4
    replies = pulled(grid, [*first, *retry])
    assert [reply.metadata.src_node_id for reply in replies] == [1000, 1001] * 2
    assert grid.pull_messages(first) == []
    # The grid goes on.
    assert len(pulled(grid, grid.push_messages(messages))) == 2
    assert len(exchange(grid, "echo", content())) == NODES


def test_one_message_may_go_to_several_nodes_one_of_which_does_not_exist(
    grid: EngineGrid,
) -> None:
    message = Message(content(), 1000, "query.echo")
    ids = []
    for node_id in (1000, 1001, 9):
        message.metadata.dst_node_id = node_id
        ids += grid.push_messages([message])
    *known, unknown = pulled(grid, ids)
    assert [reply.metadata.src_node_id for reply in known] == [1000, 1001]
    assert unknown.error.reason == "there is no node 9"
    twice = list(grid.send_and_receive([message, message]))
    assert len({reply.metadata.reply_to_message_id for reply in twice}) == 2


def test_pushing_and_pulling_nothing_or_what_is_unknown_gives_nothing(grid: EngineGrid) -> None:
    assert grid.push_messages([]) == []
    assert grid.pull_messages([]) == []
    assert grid.pull_messages(["there is no such id"]) == []


def test_torch_defaults_that_a_client_leaves_behind_reach_no_other(grid: EngineGrid) -> None:
    threads = torch.get_num_threads()
    expected = {"grad": True, "float32": True, "threads": 1}
    for _ in range(2):
        for reply in exchange(grid, "defaults", RecordDict()):
            assert dict(reply.content["seen"]) == expected
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == threads


def test_ids_are_the_same_on_any_number_of_workers(grid: EngineGrid) -> None:
    messages = [Message(RecordDict({"c": ConfigRecord()}), 1000 + n, "query.draw") for n in (0, 1)]
    replies = list(grid.send_and_receive(messages))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["1", "2"]
    assert [reply.metadata.message_id for reply in replies] == ["1-reply", "2-reply"]
