"""Rounds in which no real device may train are followed by a wait."""

import pytest

from mest_fed.schema import FailureKind
from mest_fed.server import readiness
from mest_fed.server.round_record import ClientOutcome, RoundRecord, received

NOT_NOW = (FailureKind.BUSY, FailureKind.BATTERY_LOW)


@pytest.fixture
def slept(monkeypatch):
    seconds = []
    monkeypatch.setattr(readiness, "sleep", seconds.append)
    return seconds


def record_of(*failures):
    record = RoundRecord(1, 1.0)
    record.clients = [ClientOutcome(at, at, "rpi-4", it) for at, it in enumerate(failures)]
    return record


def test_the_wait_grows_up_to_ten_minutes_and_begins_anew_after_training(slept):
    waiting = readiness.Readiness()
    for _ in range(9):
        waiting.wait_after(record_of(*NOT_NOW))
    assert slept == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    assert waiting.wait_after(record_of(None, FailureKind.BUSY)) == 0
    assert waiting.wait_after(record_of(FailureKind.BUSY)) == 5


@pytest.mark.parametrize("failure", [None, *(it for it in FailureKind if it not in NOT_NOW)])
def test_any_other_end_of_a_task_is_no_reason_to_wait(slept, failure):
    readiness.Readiness().wait_after(record_of(*NOT_NOW, failure))
    readiness.Readiness().wait_after(record_of())
    assert slept == []


def test_a_device_that_declined_has_received_nothing():
    outcome = ClientOutcome(0, 0, "rpi-4", bytes_down=100)
    assert received(outcome, FailureKind.BUSY) == 0
    assert received(outcome, FailureKind.NOT_FINITE) == 100
