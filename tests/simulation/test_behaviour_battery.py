"""Batteries by hand-worked numbers, and against going through all of the past."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from behaviour_cases import BOARD, PHONE, Fixed
from hypothesis import given, settings
from hypothesis import strategies as st

from mest_fed.simulation.behaviour.availability import DAY, Diurnal
from mest_fed.simulation.behaviour.battery import Batteries

#: Idle 1 W; 1000 J; charges with 3 W, so that 2 W fill it.
PROFILES = {0: PHONE, 1: BOARD}


def batteries(*intervals, seed=1):
    return Batteries(PROFILES.__getitem__, seed, Fixed(intervals) if intervals else None)


def charged(joules, *intervals, at=0.0):
    """Return batteries where device 0 holds so much at a time."""
    found = batteries(*intervals)
    found.restore({"battery.devices": np.array([0]), "battery.charges": np.array([[at, joules]])})
    return found


def test_waiting_drains_idle_power():
    found = charged(500.0)
    assert [found.joules(0, t) for t in (0, 100, 499, 501)] == [500, 400, 1, 0]
    assert found.share(0, 100) == 0.4


def test_being_plugged_in_charges_until_it_is_full():
    found = charged(500.0, (100, 300), (600, 2000))
    # 500 - 100 = 400; + 2 W x 200 s = 800; - 300 = 500; + 2 W x 250 s = 1000, and no more.
    assert [found.joules(0, t) for t in (100, 200, 300, 600)] == [400, 600, 800, 500]
    assert [found.joules(0, t) for t in (850, 1500, 2000, 2400)] == [1000, 1000, 1000, 600]


def test_a_round_drains_what_it_takes():
    found = charged(500.0, (100, 200))
    found.spend(0, 10, 40, 200.0)  # 490 at its start
    assert found.joules(0, 50) == pytest.approx(290)
    assert found.joules(0, 60) == pytest.approx(280)
    # In the middle of a round the charge is the one at its end.
    assert found.joules(0, 20) == pytest.approx(290)
    # 240 at 100; 60 s of 5 W plugged in (-2 W), then it waits: 100 + 2 W x 40 s.
    found.spend(0, 100, 60, 300.0)
    assert found.joules(0, 160) == pytest.approx(240 - 120)
    assert found.joules(0, 200) == pytest.approx(240 - 120 + 80)


def test_a_battery_is_never_below_empty():
    found = charged(50.0, (100, 200))
    assert found.joules(0, 100) == 0
    assert found.joules(0, 110) == 20
    found.spend(0, 110, 1, 500.0)
    assert found.joules(0, 111) == 0


def test_mains_power_never_ends():
    found = batteries()
    found.spend(1, 0, 10, 1e9)
    assert (found.joules(1, 50), found.share(1, 50)) == (math.inf, None)
    assert len(found.state()["battery.devices"]) == 0


def test_devices_begin_with_drawn_charges():
    many = Batteries(lambda _: PHONE, 1, None)
    charges = [many.joules(device, 0) for device in range(300)]
    # Uniform between 0 and 1000: 4 standard deviations around the mean.
    assert sum(charges) / 300 == pytest.approx(500, abs=4 * 1000 / math.sqrt(12 * 300))
    assert charges == [many.joules(device, 0) for device in range(300)]
    assert charges[0] != Batteries(lambda _: PHONE, 2, None).joules(0, 0)


def test_asking_touches_nothing_and_a_checkpoint_holds_those_who_took_part():
    found = Batteries(lambda _: PHONE, 1, None)
    found.joules(7, 100)
    found.spend(5, 10, 10, 3.0)
    state = found.state()
    assert state["battery.devices"].tolist() == [5]
    other = Batteries(lambda _: PHONE, 1, None)
    other.restore(state)
    assert [other.joules(d, 300) for d in (5, 7)] == [found.joules(d, 300) for d in (5, 7)]


@settings(max_examples=25, deadline=None)
@given(
    device=st.integers(0, 10**6),
    hours=st.integers(0, 24 * 8),
    full=st.sampled_from([5e3, 4e4, 2e5]),
    watts=st.sampled_from([0.3, 2.0]),
)
def test_looking_back_gives_what_going_forward_does(device, hours, full, watts):
    phone = dataclasses.replace(PHONE, battery_joules=full, charge_watts=3.0, idle_watts=watts)
    plugged = Diurnal(1, lambda _: 0.3, spread=1.0, purpose="charging")
    found = Batteries(lambda _: phone, 1, plugged)
    edges = {
        edge for day in range(-4, 12) for pair in plugged.intervals(device, day) for edge in pair
    }
    begin, end = -2 * DAY, hours * 3600.0
    times = sorted({begin, end, *(edge for edge in edges if begin < edge < end)})
    charge = found.joules(device, begin)
    for first, last in pairwise(times):
        power = 3.0 * plugged.present(device, (first + last) / 2) - watts
        charge = min(full, max(0.0, charge + power * (last - first)))
    assert found.joules(device, end) == pytest.approx(charge, abs=1e-6 * full)


def test_a_long_wait_looks_back_to_the_last_full_charge_only():
    asked = []

    class Watched(Diurnal):
        def intervals(self, device, period):
            asked.append(period)
            return super().intervals(device, period)

    plugged = Watched(1, lambda _: 0.3, spread=1.0, purpose="charging")
    found = Batteries(lambda _: PHONE, 1, plugged)
    found.joules(0, 1000 * DAY)
    assert 0 < len(asked) < 8
