"""What memory a node has to train in, where a round took more than its budget."""

import pytest

from mest_fed.errors import OverBudgetError
from mest_fed.link.node.room import Room


class Meter:
    """A meter that has measured."""

    def __init__(self, peak, exact=True):
        self.peak, self.exact = peak, exact

    def look(self):
        pass


class Plan:
    """What a node reads of a run's description."""

    def __init__(self, budget, peak):
        self.budget, self.predicted_peak = budget, peak


def room_of(budget=0, memory_limit=0, alone=True):
    room = Room(budget, memory_limit, alone)
    room.anonymous = 1_000
    room.planned(Plan(500, 450))
    return room


def test_a_round_over_the_budget_fails_and_the_next_plan_is_smaller_by_as_much():
    room = room_of(500)
    room.hold(Meter(1_500))
    with pytest.raises(OverBudgetError, match=r"540 B \(measured\) of 500 B"):
        room.hold(Meter(1_540))
    assert room.failed() == 460
    room.planned(Plan(460, 400))
    room.hold(Meter(1_455))
    assert room.failed() == 300  # of what failed for want of memory three quarters


def test_a_budget_of_the_profile_is_held_too():
    with pytest.raises(OverBudgetError):
        room_of().hold(Meter(1_501))


@pytest.mark.parametrize(
    ("room", "meter"),
    [
        (room_of(500, alone=False), Meter(9_000)),
        (room_of(memory_limit=10_000), Meter(9_000)),
        (room_of(500), Meter(9_000, exact=False)),
    ],
    ids=["others in the process", "a limit holds", "not exact"],
)
def test_what_is_no_measurement_of_this_node_against_a_budget_fails_no_round(room, meter):
    room.hold(meter)
