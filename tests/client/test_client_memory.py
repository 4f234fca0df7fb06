"""A client's plan and its memory: given, kept, measured, held to the budget and the limit."""

import json
import re

import pytest
from client_parts import context_of, instruction, small_config, start_of, task_of

import mest_fed.client.capability
import mest_fed.client.memory_guard
from mest_fed.client.app import app
from mest_fed.client.capability import capability_of
from mest_fed.client.memory_guard import RoundMemory, limit_guard
from mest_fed.errors import InputError
from mest_fed.schema import FailureKind, failure_of_code
from mest_fed.system.peak_meter import PeakMeter
from mest_fed.training import LocalTrainer, OptimizerSettings

CONFIG = small_config()
MB = 10**6


def plan_text(**changes):
    plan = task_of(CONFIG).plan(100 * MB, "test")
    return json.dumps(plan.as_table() | changes)


def train(context):
    return app(instruction(CONFIG, start_of(CONFIG)), context)


def test_a_given_plan_is_followed():
    context = context_of(CONFIG, plan=plan_text(micro_batch=8, recompute="segments", saved="int8"))
    plan = capability_of(task_of(CONFIG), context).plan
    assert (plan.micro_batch, plan.memory.recompute, plan.memory.saved) == (8, "segments", "int8")
    metrics = train(context).content["metrics"]
    assert metrics["predicted-peak"] == plan.footprint.total
    assert len(context.state.config_records) == 0  # nothing was planned


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": 65}, "micro_batch = 65 is not allowed; allowed: 1 to 64"),
        ({"saved": "fp4"}, "saved = 'fp4' is not allowed"),
        ({"batch": 128}, "batch = 128 is not allowed; allowed: 64"),
        ({"frozen": 99}, "frozen = 99 is not allowed; allowed: a whole number from 0 to 3"),
        ({"distribution": "fair"}, "distribution = 'fair' is not allowed"),
        ({"budget_bytes": 1}, "over its budget_bytes = 1"),
    ],
)
def test_an_impossible_plan_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        train(context_of(CONFIG, plan=plan_text(**changes)))


@pytest.mark.parametrize("peak", ["much", -1, 1.5, True])
def test_a_measured_peak_that_is_none_is_refused(peak):
    with pytest.raises(InputError, match=r"measured-peak \(node config\) = .*whole number"):
        train(context_of(CONFIG, **{"measured-peak": peak}))


def test_a_plan_is_made_once_and_kept(monkeypatch):
    context = context_of(CONFIG, budget="3MB")
    first = capability_of(task_of(CONFIG), context).plan
    monkeypatch.setattr(mest_fed.client.capability, "make_plan", None)  # to plan again fails
    again = context_of(CONFIG, budget="3MB", state=context.state)
    assert capability_of(task_of(CONFIG), again).plan == first
    with pytest.raises(TypeError):
        capability_of(task_of(CONFIG), context_of(CONFIG, budget="4MB", state=context.state))


def test_a_plan_that_was_measured_over_the_budget_never_trains(monkeypatch):
    monkeypatch.setattr(
        "mest_fed.client.handlers.train_round", None
    )  # whoever trains fails otherwise
    context = context_of(CONFIG, **{"budget": "100MB", "measured-peak": 100 * MB + 1})
    error = train(context).error
    assert failure_of_code(error.code) is FailureKind.OVER_BUDGET
    assert re.search(r"over the memory budget: .*\(measured\) of 100 MB", error.reason)


def test_a_plan_that_was_measured_within_the_budget_trains():
    reply = train(context_of(CONFIG, **{"budget": "100MB", "measured-peak": 100 * MB}))
    assert reply.content["metrics"]["measured-peak"] == 100 * MB


def test_a_device_measures_itself(monkeypatch):
    monkeypatch.setattr(PeakMeter, "added", 12_345_678)
    reply = train(context_of(CONFIG, budget="500MB"))
    assert reply.content["metrics"]["measured-peak"] == 12_345_678
    assert reply.content["metrics"]["micro-batch-halved"] == 0


def test_a_device_without_limit_or_budget_measures_itself_too(monkeypatch):
    monkeypatch.setattr(PeakMeter, "added", 12_345_678)
    monkeypatch.setattr("mest_fed.client.memory_guard.alone", lambda: True)
    assert train(context_of(CONFIG)).content["metrics"]["measured-peak"] == 12_345_678


def test_a_device_over_its_budget_fails_its_round(monkeypatch):
    monkeypatch.setattr(PeakMeter, "added", 10**12)
    error = train(context_of(CONFIG, budget="500MB")).error
    assert failure_of_code(error.code) is FailureKind.OVER_BUDGET


def test_a_device_without_memory_fails_its_round(monkeypatch):
    def nothing_left(*_, **__):
        raise MemoryError("no more")

    monkeypatch.setattr("mest_fed.client.handlers.train_round", nothing_left)
    error = train(context_of(CONFIG)).error
    assert failure_of_code(error.code) is FailureKind.OUT_OF_MEMORY
    assert error.reason == "MemoryError: no more"


def test_clients_that_share_a_process_are_not_measured(monkeypatch):
    monkeypatch.setattr(PeakMeter, "added", 10**12)
    assert train(context_of(CONFIG)).content["metrics"]["measured-peak"] == 0


def trainer():
    net = task_of(CONFIG).build_model()
    return LocalTrainer(net, OptimizerSettings(0.1).build(net), micro_batch=9)


@pytest.mark.parametrize(("used", "micro_batch"), [(949, 9), (951, 5)])
def test_near_the_limit_the_micro_batch_is_halved_once(monkeypatch, used, micro_batch):
    monkeypatch.setattr(mest_fed.client.memory_guard, "limit_of_process", lambda: 1000)
    monkeypatch.setattr(mest_fed.client.memory_guard, "usage", lambda: used)
    memory, training = RoundMemory(), trainer()
    context = context_of(CONFIG, **{"memory-limit": "1kB", "memory-margin": 0.05})
    guard = limit_guard(task_of(CONFIG), context, memory)
    for _ in range(3):
        guard(training)
    assert training.micro_batch == micro_batch
    assert memory.halved == (micro_batch < 9)


def test_without_a_limit_memory_is_not_guarded(monkeypatch):
    monkeypatch.setattr(mest_fed.client.memory_guard, "limit_of_process", lambda: 1000)
    assert limit_guard(task_of(CONFIG), context_of(CONFIG, budget="1MB"), RoundMemory()) is None
    monkeypatch.setattr(mest_fed.client.memory_guard, "limit_of_process", lambda: None)
    context = context_of(CONFIG, **{"memory-limit": "1kB"})
    assert limit_guard(task_of(CONFIG), context, RoundMemory()) is None
