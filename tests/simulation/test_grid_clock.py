"""Virtual time by hand-worked numbers, and the bytes it rests on."""

import dataclasses
import math

import numpy as np
import pytest
from behaviour_cases import BOARD, SLOW
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from mest_fed.errors import InputError
from mest_fed.schema import FailureKind
from mest_fed.server.flower_internals import claim_identity
from mest_fed.server.round_record import ClientTiming
from mest_fed.simulation.behaviour.clock import VirtualClock
from mest_fed.simulation.engine.executor import SerialExecutor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import make_nodes
from mest_fed.wire.records import content_bytes

#: "config" 6 + "pad" 3 + 991 bytes.
INSTRUCTION = RecordDict({"config": ConfigRecord({"pad": b"x" * 991})})

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """ClientFeedback 3 million dense and 0.4 million sparse operations in 250 bytes."""
    if context.node_config["partition-id"] == 2:
        raise MemoryError("over budget")
    work = MetricRecord({"flops-dense": 3e6, "flops-sparse": 4e5})  # 11 + 8 + 12 + 8 bytes
    rest = ConfigRecord({"pad": b"x" * 201})  # 3 + 201 bytes; the names take 4 + 3
    return Message(RecordDict({"work": work, "res": rest}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)


def fleet(clock: VirtualClock, num_nodes: int = 2) -> EngineGrid:
    return EngineGrid(make_nodes(num_nodes), SerialExecutor(app), simulator=clock, stream=True)


def send(grid: EngineGrid, kind: str = "train") -> list[Message]:
    messages = [Message(INSTRUCTION, node_id, kind) for node_id in grid.get_node_ids()]
    return list(grid.send_and_receive(messages))


def clock(**options: object) -> VirtualClock:
    profiles = {1000: BOARD, 1001: SLOW, 1002: BOARD}
    return VirtualClock(profiles, scheme="block:8", seed=1, **options)


def test_content_bytes_counts_data_values_names_and_keys() -> None:
    array = Array(np.zeros(10, np.float32))
    content = RecordDict(
        {
            "a": ArrayRecord({"wé": array}),
            "cfg": ConfigRecord({"i": 1, "f": [0.5, 0.5], "t": True, "s": "é", "e": ""}),
            "m": MetricRecord({"n": 3, "l": [1.0, 2.0, 3.0]}),
            "b": ConfigRecord({"raw": b"12345"}),
        }
    )
    arrays = 1 + 3 + len(array.data)
    config = 3 + (1 + 8) + (1 + 16) + (1 + 1) + (1 + 2) + 1
    metrics = 1 + (1 + 8) + (1 + 24)
    assert content_bytes(content) == arrays + config + metrics + 1 + 3 + 5
    assert content_bytes(RecordDict()) == 0
    assert content_bytes(INSTRUCTION) == 1000


def test_an_exchange_lasts_as_long_as_its_slowest_device() -> None:
    virtual = clock()
    grid = fleet(virtual)
    assert not any(reply.has_error() for reply in send(grid))
    fast, slow = virtual.take_timings()
    # Down 0.125 + 1000/1000; 3e6/1e6 + 4e5/2e5 of work; up 0.125 + 250/500; 5 W and 2 W.
    assert fast == ClientTiming(
        1000,
        "train",
        None,
        bytes_down=1000,
        bytes_up=250,
        download_seconds=1.125,
        train_seconds=5.0,
        upload_seconds=0.625,
        energy_joules=5 * 5.0 + 2 * 1.75,
    )
    assert slow.train_seconds == pytest.approx(34.0)
    assert virtual.now == pytest.approx(35.75)
    assert virtual.take_timings() == []
    send(grid)
    assert virtual.now == pytest.approx(71.5)


def test_an_exchange_ends_where_its_reader_stops() -> None:
    virtual = clock()
    replies = fleet(virtual).send_and_receive(
        Message(INSTRUCTION, node_id, "train") for node_id in (1000, 1001)
    )
    next(replies)
    replies.close()
    assert (virtual.now, virtual.instructions) == (pytest.approx(6.75), 1)


def test_a_resumed_clock_goes_on_from_where_it_was() -> None:
    virtual = clock()
    virtual.now, virtual.instructions = 100.0, 6
    send(fleet(virtual))
    assert (virtual.now, virtual.instructions) == (pytest.approx(135.75), 8)


def test_queries_cost_nothing() -> None:
    virtual = clock()
    send(fleet(virtual), "query")
    assert (virtual.now, virtual.take_timings()) == (0.0, [])


def test_a_failed_client_is_charged_its_download() -> None:
    virtual = clock()
    *_, failed = send(fleet(virtual, 3))
    assert failed.error.reason == "MemoryError: over budget"
    timing = virtual.take_timings()[2]
    assert (timing.status, timing.reason) == ("failed", "MemoryError: over budget")
    assert (timing.seconds, timing.bytes_up, timing.energy_joules) == (1.125, 0, 2.25)


def test_a_late_reply_is_lost_and_the_server_waits_until_the_deadline() -> None:
    virtual = clock(deadline=10)
    fast, slow = send(fleet(virtual))
    assert fast.has_content()
    assert slow.error.reason == "missed the deadline of 10 s"
    assert virtual.now == 10.0
    timing = virtual.take_timings()[1]
    assert (timing.status, timing.reason) == ("late", "missed the deadline of 10 s")
    assert timing.seconds == pytest.approx(35.75)
    with pytest.raises(InputError, match="deadline = 0 is not allowed"):
        clock(deadline=0)


def test_a_device_that_is_away_does_not_run() -> None:
    never = dataclasses.replace(BOARD, availability=1e-12)
    virtual = VirtualClock({1000: BOARD, 1001: never}, scheme="block", seed=1)
    ran = []
    counting = ClientApp()

    @counting.train()
    def train(message: Message, context: Context) -> Message:
        ran.append(context.node_id)
        return Message(RecordDict(), reply_to=message)

    here, away = send(EngineGrid(make_nodes(2), SerialExecutor(counting), simulator=virtual))
    assert here.has_content()
    assert (away.error.code, away.error.reason) == (5, "device was away")
    assert ran == [1000]
    assert virtual.take_timings()[1] == ClientTiming(
        1001, "train", FailureKind.AWAY, "device was away"
    )
    assert virtual.now == pytest.approx(1.125 + 0.125)


def test_availability_is_the_share_of_exchanges_that_a_device_is_there() -> None:
    half = dataclasses.replace(BOARD, availability=0.5)
    virtual = VirtualClock(dict.fromkeys(range(1000, 1100), half), scheme="block", seed=1)
    claim_identity(1)
    messages = [Message(INSTRUCTION, node_id, "train") for node_id in range(1000, 1100)]
    draws = []
    for _ in range(20):
        met = [virtual.draw_conditions(message, start=0.0, within=math.inf) for message in messages]
        draws.append([conditions.refusal for conditions in met])
        again = [
            virtual.draw_conditions(message, start=0.0, within=math.inf, number=conditions.number)
            for message, conditions in zip(messages, met, strict=True)
        ]
        assert again == met
    away = np.array([[reason is not None for reason in row] for row in draws])
    # Binomial of 2000 draws: 4 standard deviations around one half.
    assert abs(away.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert (away.any(axis=0) & ~away.all(axis=0)).all()
