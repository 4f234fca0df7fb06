"""What comes of one instruction under drawn circumstances, by hand-worked numbers."""

import dataclasses
import math
import pickle

import pytest
from behaviour_cases import BOARD
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.server.flower_internals import APP_RAISED, claim_identity, error_reply
from mest_fed.simulation.behaviour.behaviour import slowed
from mest_fed.simulation.behaviour.conditions import DeviceConditions

#: Bare, so that it can be pickled. A round of it takes 1.125 + 5 + 0.625 s at 2, 5 and 2 W.
DEVICE = slowed(BOARD, 1.0, 1.0)
DOWN, TRAIN, UP = 1.125, 5.0, 0.625
TOTAL = DOWN + TRAIN + UP


@pytest.fixture(autouse=True)
def _identity():
    claim_identity(1)


def instruction():
    return Message(RecordDict({"config": ConfigRecord({"pad": b"x" * 991})}), 1000, "train")


def report(message):
    """Return 250 bytes that report 3 million dense and 0.4 million sparse operations."""
    work = MetricRecord({"flops-dense": 3e6, "flops-sparse": 4e5})
    content = RecordDict({"work": work, "res": ConfigRecord({"pad": b"x" * 201})})
    return Message(content, reply_to=message)


def task_result(reply=report, **circumstances):
    message = instruction()
    conditions = DeviceConditions(1, DEVICE, "block:8", 50.0, **circumstances)
    result = conditions.resolve(message, reply(message))
    assert conditions.at_least(message) <= result.seconds
    return result


def parts(timing):
    return timing.download_seconds, timing.train_seconds, timing.upload_seconds


def test_a_device_that_nothing_happens_to():
    result = task_result(battery=0.75)
    assert result.reply.has_content()
    assert (result.seconds, result.keeps_state) == (TOTAL, True)
    timing = result.timing
    assert (timing.status, timing.start, timing.battery) == ("ok", 50.0, 0.75)
    assert parts(timing) == (DOWN, TRAIN, UP)
    assert (timing.bytes_down, timing.bytes_up) == (1000, 250)
    assert timing.energy_joules == 2 * (DOWN + UP) + 5 * TRAIN


@pytest.mark.parametrize(
    ("after", "expected", "joules", "keeps"),
    [
        (1.0, (1.0, 0.0, 0.0), 2.0, False),  # while it downloads
        (3.125, (DOWN, 2.0, 0.0), 12.25, False),  # while it trains
        (6.25, (DOWN, TRAIN, 0.125), 27.5, True),  # while it sends
    ],
)
def test_a_device_that_is_lost_spends_until_then(after, expected, joules, keeps):
    for circumstances, reason in (
        ({"stays": after}, "device went away"),
        ({"drops_at": after / TOTAL}, "device dropped out"),
        ({"joules": joules}, "battery ran empty"),
    ):
        result = task_result(**circumstances)
        timing = result.timing
        assert result.reply.error.reason == timing.reason == reason
        assert (timing.status, timing.bytes_down, timing.bytes_up) == ("dropped", 1000, 0)
        assert parts(timing) == pytest.approx(expected)
        assert timing.energy_joules == pytest.approx(joules)
        assert result.seconds == pytest.approx(after)
        assert result.keeps_state is keeps


def test_a_process_for_a_message_takes_its_time_and_energy():
    message = instruction()
    device = dataclasses.replace(DEVICE, message_seconds=10.0)
    conditions = DeviceConditions(1, device, "block:8", 0.0, starts_process=True)
    timing = conditions.resolve(message, report(message)).timing
    assert (timing.setup_seconds, timing.seconds) == (10.0, TOTAL + 10)
    assert timing.energy_joules == 2 * (DOWN + UP) + 5 * (10 + TRAIN)
    away = dataclasses.replace(conditions, stays=DOWN + 4)
    lost = away.resolve(message, report(message)).timing
    assert (lost.setup_seconds, lost.train_seconds, lost.energy_joules) == (4.0, 0.0, 22.25)


def test_bytes_and_calls_that_a_client_reports_take_time():
    message = instruction()
    content = RecordDict({"work": MetricRecord({"bytes-moved": 2e6, "core-seconds": 3.0})})
    timing = DeviceConditions(1, DEVICE, "block:8", 0.0).resolve(
        message, Message(content, reply_to=message)
    )
    assert timing.timing.train_seconds == 2e6 / BOARD.memory_rate + 3.0 / BOARD.core_speed


def test_the_first_loss_counts():
    result = task_result(stays=4.0, drops_at=0.5, joules=1.0)
    assert (result.timing.reason, result.seconds) == ("battery ran empty", 0.5)


def test_enough_is_enough():
    assert task_result(stays=TOTAL, joules=28.5).timing.status == "ok"


def test_a_late_reply_is_lost_but_its_device_works_on():
    result = task_result(within=6.0)
    assert result.reply.error.reason == "missed the deadline of 6 s"
    assert (result.seconds, result.busy_seconds, result.keeps_state) == (6.0, TOTAL, True)
    assert (result.timing.status, result.timing.seconds) == ("late", TOTAL)
    assert result.timing.bytes_up == 250


def test_a_device_with_an_earlier_task_until_the_deadline_is_late():
    result = task_result(within=0.0)
    reason = "was busy with an earlier instruction until the deadline"
    assert (result.timing.failure, result.timing.reason) == ("occupied", reason)
    assert (result.timing.status, result.seconds, result.busy_seconds) == ("late", 0.0, TOTAL)


def test_a_device_lost_after_the_deadline_is_late():
    result = task_result(within=2.0, stays=4.0)
    assert (result.timing.status, result.seconds, result.busy_seconds) == ("late", 2.0, 4.0)
    assert not result.keeps_state
    assert task_result(within=4.0, stays=2.0).timing.status == "dropped"


def test_a_failed_client_is_charged_its_download():
    def failing(message):
        return error_reply(message, APP_RAISED, "MemoryError: much")

    result = task_result(failing)
    assert (result.timing.status, result.timing.reason) == ("failed", "MemoryError: much")
    assert (result.seconds, result.timing.energy_joules) == (DOWN, 2.25)
    assert task_result(failing, stays=1.0).timing.reason == "device went away"


def refused(message):
    return error_reply(message, APP_RAISED, "no")


def test_a_device_that_is_away_costs_what_it_takes_to_notice():
    result = task_result(refused, refusal="device was away", noticed=7.0)
    assert (result.timing.status, result.timing.reason) == ("away", "device was away")
    assert (result.seconds, result.timing.seconds, result.timing.bytes_down) == (7.0, 0.0, 0)
    assert task_result(refused, refusal="device was away", noticed=7.0, within=3.0).seconds == 3.0


def test_memory_turns_out_to_be_short_after_the_download():
    result = task_result(refused, refusal="no")
    assert (result.timing.status, result.timing.reason) == ("failed", "no")
    assert (result.seconds, result.timing.bytes_down) == (DOWN, 1000)


@given(
    stays=st.floats(0, 10),
    share=st.floats(0, 0.999),
    joules=st.floats(0, 40),
    within=st.floats(0.01, 10),
)
def test_time_and_energy_never_exceed_any_limit(stays, share, joules, within):
    result = task_result(stays=stays, drops_at=share, joules=joules, within=within)
    limit = min(stays, share * TOTAL, within)
    assert result.seconds <= limit + 1e-9
    assert result.timing.energy_joules <= joules + 1e-9
    assert result.timing.status in ("dropped", "late")
    assert result.reply.has_error()


def test_conditions_travel_to_workers():
    conditions = DeviceConditions(1, DEVICE, "block:8", 50.0, stays=math.inf)
    data = pickle.dumps(conditions)
    assert pickle.loads(data) == conditions
    assert len(data) < 1500


def test_slower_devices_take_longer_and_the_network_stays():
    slow = slowed(BOARD, 3.0, 2.0)
    conditions = dataclasses.replace(DeviceConditions(1, DEVICE, "block", 0.0), device=slow)
    message = instruction()
    timing = conditions.resolve(message, report(message)).timing
    assert parts(timing) == (0.125 + 2.0, 15.0, 0.125 + 1.0)
