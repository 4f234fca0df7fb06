"""What a round takes beside its steps, by hand."""

import pytest

from mest_fed.devices import Work, batch_work, load_profile, round_work, train_seconds
from mest_fed.devices.round_costs import RoundSeconds

SECONDS = RoundSeconds(round=0.5, tensor=0.25, byte=0.125)


def test_a_round_its_tensors_and_its_examples():
    assert round_work(0, SECONDS) == Work(python_seconds=0.5)
    assert round_work(3, SECONDS) == Work(python_seconds=0.5 + 0.75)
    assert batch_work(8, SECONDS) == Work(python_seconds=1.0)


def test_it_goes_by_the_speed_of_python_alone():
    board = load_profile("rpi-4")
    assert board.python_time == pytest.approx(30 / 6.5)
    found = train_seconds(board, Work(python_seconds=0.65), "block")
    assert found == pytest.approx(3.0)
