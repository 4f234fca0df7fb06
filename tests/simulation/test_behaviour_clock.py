"""What the clock draws for devices: refusals, speeds, memory, and what it keeps."""

import dataclasses
import math

import numpy as np
import pytest
from behaviour_cases import BOARD, PHONE, Fixed
from flwr.app import Message, RecordDict

from mest_fed.config import from_table
from mest_fed.config.behaviour import BehaviourSection
from mest_fed.devices import round_work
from mest_fed.errors import InputError
from mest_fed.schema import FailureKind
from mest_fed.server.flower_internals import claim_identity
from mest_fed.server.round_record import ClientTiming
from mest_fed.simulation.behaviour.behaviour import MemoryNeed, draw, shortage
from mest_fed.simulation.behaviour.clock import (
    VirtualClock,
    check_cohort,
    check_deadline,
    least_seconds,
    trace_of,
)
from mest_fed.simulation.engine.interfaces import TaskResult
from mest_fed.sparsity import layout_for
from mest_fed.sparsity.state import ModelSpec

MANY = range(1000, 3000)


@pytest.fixture(autouse=True)
def _identity():
    claim_identity(1)


def clock(profile=BOARD, *, seed=1, trace=None, needs=None, **behaviour):
    return VirtualClock(
        dict.fromkeys(MANY, profile),
        scheme="block",
        seed=seed,
        behaviour=BehaviourSection(**({"availability": "always"} | behaviour)),
        trace=trace,
        needs=needs,
    )


def draw_conditions(virtual, node=1000, *, start=0.0, kind="train", number=None):
    message = Message(RecordDict(), node, kind)
    return virtual.draw_conditions(message, start=start, within=math.inf, number=number)


def refusals(virtual, kind="train", nodes=MANY):
    return [draw_conditions(virtual, node, kind=kind).refusal for node in nodes]


# Draws


def test_dropout_has_its_share_and_is_uniform():
    behaviour = BehaviourSection(dropout=0.3)
    moments = [draw(behaviour, 1, number, 5).drops_at for number in range(4000)]
    dropped = np.array([moment for moment in moments if moment is not None])
    # Four standard deviations of a binomial, and of a mean of uniform draws.
    assert len(dropped) == pytest.approx(1200, abs=4 * math.sqrt(4000 * 0.3 * 0.7))
    assert dropped.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 1200))
    assert (dropped.min() < 0.02, dropped.max() > 0.98) == (True, True)


def test_jitter_is_log_normal_with_median_one():
    behaviour = BehaviourSection(compute_jitter=0.5, bandwidth_jitter=0.2)
    draws = [draw(behaviour, 1, number, 5) for number in range(4000)]
    for sigma, factors in ((0.5, [d.compute for d in draws]), (0.2, [d.bandwidth for d in draws])):
        logs = np.log(factors)
        assert logs.mean() == pytest.approx(0, abs=4 * sigma / math.sqrt(4000))
        assert logs.std() == pytest.approx(sigma, rel=0.05)
    assert abs(np.corrcoef([d.compute for d in draws], [d.bandwidth for d in draws])[0, 1]) < 0.07


def test_what_is_drawn_does_not_depend_on_what_else_is():
    alone = draw(BehaviourSection(compute_jitter=0.5), 1, 7, 3)
    beside = draw(
        BehaviourSection(
            compute_jitter=0.5, dropout=0.5, memory_pressure=0.1, bandwidth_jitter=1.0
        ),
        1,
        7,
        3,
    )
    assert alone.compute == beside.compute != 1
    assert (alone.drops_at, alone.bandwidth, alone.held) == (None, 1.0, 0.0)
    assert len({draw(BehaviourSection(compute_jitter=0.5), *path) for path in paths()}) == 4


def paths():
    return [(1, 7, 3), (2, 7, 3), (1, 8, 3), (1, 7, 4)]


def test_stragglers_are_the_same_throughout_the_run():
    virtual = clock(stragglers=0.3, straggler_factor=5.0)
    slow = [draw_conditions(virtual, node).device.flops["dense"] == 2e5 for node in MANY]
    assert sum(slow) == pytest.approx(600, abs=4 * math.sqrt(2000 * 0.3 * 0.7))
    assert slow == [draw_conditions(virtual, node).device.flops["dense"] == 2e5 for node in MANY]
    straggler = draw_conditions(virtual, 1000 + slow.index(True)).device
    assert (straggler.upload_rate, straggler.latency) == (BOARD.upload_rate / 5, BOARD.latency)


def test_an_instruction_that_is_met_again_finds_the_same():
    options = {"dropout": 0.5, "compute_jitter": 1.0, "memory_pressure": 0.2}
    virtual = clock(**options)
    first = [draw_conditions(virtual, node) for node in MANY[:50]]
    again = [
        draw_conditions(clock(**options), node, number=met.number)
        for node, met in zip(MANY, first, strict=False)
    ]
    assert first == again
    assert len({met.drops_at for met in first}) > 10


def test_a_deadline_counts_from_when_the_device_was_asked():
    def with_deadline():
        return VirtualClock({1000: BOARD}, scheme="block", seed=1, deadline=10.0)

    virtual = with_deadline()
    virtual.now = 100.0
    idle, busy = draw_conditions(virtual, start=100.0), draw_conditions(virtual, start=104.0)
    assert (idle.within, busy.within) == (10.0, 6.0)
    resumed = with_deadline()
    virtual.now = 107.0
    resumed.restore(virtual.state())
    assert draw_conditions(resumed, start=100.0, number=idle.number).within == 10.0
    assert draw_conditions(resumed, start=104.0, number=busy.number).within == 6.0
    # What has passed its deadline is forgotten.
    resumed.now = 120.0
    draw_conditions(resumed, start=121.0)
    assert resumed.state()["sent.moments"].tolist() == [120.0]


# Presence


def test_devices_come_and_go_by_a_trace():
    virtual = clock(availability="trace", trace=Fixed([(100, 200), (300, 350)]), away_seconds=30.0)
    away = draw_conditions(virtual, start=50)
    assert (away.refusal, away.noticed) == ("device was away", 30.0)
    here = draw_conditions(virtual, start=150)
    assert (here.refusal, here.stays) == (None, 50)
    assert virtual.present_nodes([1000, 1001]) == []
    assert virtual.next_present([1000, 1001]) == 100
    virtual.now = 150
    assert virtual.present_nodes([1001, 1000]) == [1001, 1000]
    virtual.now = 400
    assert virtual.next_present([1000]) == math.inf


def test_owners_days_have_the_availability_of_the_profile():
    half = dataclasses.replace(BOARD, availability=0.5)
    away = [refusal is not None for refusal in refusals(clock(half, availability="diurnal"))]
    # Binomial, four standard deviations; phases are uniform.
    assert sum(away) == pytest.approx(1000, abs=4 * math.sqrt(2000 * 0.25))
    virtual = clock(half, availability="diurnal")
    there = set(virtual.present_nodes(MANY))
    assert there == {node for node in MANY if draw_conditions(virtual, node).refusal is None}


def test_a_chance_cannot_be_foreseen():
    rare = dataclasses.replace(BOARD, availability=0.01)
    virtual = clock(rare, availability="profile")
    assert virtual.present_nodes(MANY) == list(MANY)
    assert sum(refusal is None for refusal in refusals(virtual)) < 60


# Memory


def test_what_is_left_of_the_budget_must_hold_the_peak():
    need = MemoryNeed(budget=100_000_000, peak=60_000_000)
    assert shortage(need, 10**9, 0.0) is None
    assert shortage(need, 10**9, 0.04) is None  # exactly enough
    assert shortage(need, 10**9, 0.05) == (
        "out of memory: training takes 60 MB, and other programs leave 50 MB of 100 MB"
    )
    assert "leave 0 B of 100 MB" in str(shortage(need, 10**9, 1.0))


def test_memory_is_short_as_often_as_an_exponential_share_exceeds_the_room():
    needs = dict.fromkeys(MANY, MemoryNeed(budget=10**8, peak=5 * 10**7))
    virtual = clock(needs=needs, memory_pressure=0.05)
    short = sum("out of memory" in (reason or "") for reason in refusals(virtual))
    # The room is 5% of 1 GB: exp(-0.05 / 0.05) of draws exceed it.
    expected = 2000 * math.exp(-1)
    assert short == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - math.exp(-1))))
    assert not any(refusals(virtual, "evaluate"))
    assert not any(refusals(clock(needs=needs)))


# Batteries


def test_a_device_whose_battery_is_low_refuses_until_it_is_charged():
    virtual = clock(PHONE, battery=True, battery_floor=0.2, charging="never")
    met = [draw_conditions(virtual, node, kind="evaluate") for node in MANY]
    assert all(m.joules == pytest.approx(1000 * m.battery) for m in met)
    low = [m for m in met if m.refusal is not None]
    assert {m.battery < 0.2 for m in low} == {True}
    assert min(m.battery for m in met if m.refusal is None) >= 0.2
    assert low[0].refusal == f"battery is low: {low[0].battery:.0%}, below 20%"
    assert low[0].noticed == 0.0
    ready = [node for node, m in zip(MANY, met, strict=True) if m.refusal is None]
    assert virtual.present_nodes(MANY) == ready
    virtual.now = 500.0  # half of a full charge later
    assert 0 < len(virtual.present_nodes(MANY)) < len(ready)
    assert virtual.next_present(MANY) == 1400.0


def test_rounds_drain_the_battery_and_checkpoints_keep_it():
    virtual = clock(PHONE, battery=True, charging="never")
    before = draw_conditions(virtual, start=10.0).joules
    timing = ClientTiming(1000, "train", start=10.0, train_seconds=5.0, energy_joules=25.0)
    virtual.record(TaskResult(None, 5.0, timing))
    virtual.record(TaskResult(None, 5.0, ClientTiming(1001, "train", FailureKind.AWAY, start=10.0)))
    assert draw_conditions(virtual, start=15.0).joules == pytest.approx(before - 25)
    virtual.now = 20.0
    resumed = clock(PHONE, battery=True, charging="never")
    resumed.restore({key: array.copy() for key, array in virtual.state().items()})
    assert (resumed.now, resumed.instructions) == (20.0, 2)
    assert virtual.state()["battery.devices"].tolist() == [0]
    assert [draw_conditions(c, start=90.0) for c in (virtual, resumed)] == 2 * [
        draw_conditions(resumed, start=90.0, number=3)
    ]


def test_devices_that_are_plugged_in_do_not_run_empty():
    virtual = clock(PHONE, battery=True, plugged=1.0)
    met = draw_conditions(virtual, start=5.0)
    assert (met.joules, met.battery) == (math.inf, 1.0)


# What is known of devices afterwards


def test_the_time_that_nodes_took_is_known_until_it_is_logged():
    virtual = clock()
    for node, kind, failure in [
        (1000, "train", None),
        (1001, "train", FailureKind.CLIENT_ERROR),
        (1002, "evaluate", None),
    ]:
        timing = ClientTiming(node, kind, failure, train_seconds=5.0)
        virtual.record(TaskResult(None, 5.0, timing))
    assert virtual.train_seconds() == {1000: 5.0}
    virtual.take_timings()
    assert virtual.train_seconds() == {}


# What is refused before a run


SPEC = ModelSpec({"w": ("w",)}, {"w": layout_for("unstructured", (1, 1000))}, {"bias": (50,)})


def config(**sections):
    return from_table(sections, "test")


def test_a_deadline_that_no_device_can_meet():
    fast = dataclasses.replace(BOARD, name="fast", upload_rate=1000.0)
    plan = config(fleet={"deadline": 1.5}, wire={"upload": "int8"})
    # 100 active weights and 50 others: 600 B down and 150 B up, and 0.125 s each way.
    assert least_seconds(plan, SPEC, fast, 0.1) == pytest.approx(0.6 + 0.15 + 0.25)
    tiers = [(BOARD, 0.2), (fast, 0.1)]
    check_deadline(plan, SPEC, tiers)
    check_deadline(config(), SPEC, tiers)
    with pytest.raises(InputError) as caught:
        check_deadline(config(fleet={"deadline": 0.5}), SPEC, tiers)
    assert str(caught.value) == (
        "fleet.deadline = 0.5 is not allowed: no device meets it; allowed: more than 1.45, the "
        "1.4 s that fast needs at least to start, to receive and to send its values (modelled), "
        "or 0 for none"
    )
    slow = dataclasses.replace(fast, message_seconds=30.0)
    python = round_work(SPEC.tensors).python_seconds * slow.python_time
    assert least_seconds(plan, SPEC, slow, 0.1) == pytest.approx(31.0 + python)
    stays = config(behaviour={"process_per_message": False}, wire={"upload": "int8"})
    assert least_seconds(stays, SPEC, slow, 0.1) == pytest.approx(1.0 + python)


def test_a_cohort_that_is_larger_than_the_fleet():
    check_cohort(config(fleet={"devices": 10}))
    with pytest.raises(InputError, match=r"clients_per_round = 10 .* allowed: 1 to 9"):
        check_cohort(config(fleet={"devices": 9}))


def test_the_trace_of_a_run_is_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("device,start,end\n*,5,10\n")
    behaviour = {"availability": "trace", "trace": str(path), "trace_repeats": False}
    trace = trace_of(config(behaviour=behaviour), ["rpi-4"])
    assert (trace.returns(0, 0), trace.returns(0, 10)) == (5, math.inf)
    assert trace_of(config(), ["rpi-4"]) is None
