"""Evaluation on the clients: who is asked and when, and what their answers come to."""

import math

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from server_parts import (
    NODES,
    capability,
    error_to,
    evaluate_messages,
    strategy_of,
    train_messages,
)

from mest_fed.run_rows.rounds import Spread
from mest_fed.server import client_registry


def evaluation_reply(message, correct, examples=4, **changes):
    metrics = {"num-examples": examples, "loss-sum": 1.0, "correct": correct} | changes
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def evaluated(strategy, grid, number=2):
    train_messages(strategy, grid, number)
    return evaluate_messages(strategy, grid, number)


def test_clients_evaluate_when_due(strategy, grid):
    for number in range(1, 9):
        assert bool(evaluated(strategy, grid, number)) == (number % 2 == 0)


def test_clients_evaluate_after_the_last_round(grid):
    strategy = strategy_of(server={"evaluate_clients_every": 5})
    assert [n for n in range(1, 9) if evaluated(strategy, grid, n)] == [5, 8]
    never = strategy_of(server={"evaluate_clients_every": 0})
    assert not any(evaluated(never, grid, n) for n in range(1, 9))


@pytest.mark.parametrize("back", [True, False])
def test_a_device_that_is_started_anew_before_they_evaluate_is_waited_for(
    strategy, grid, monkeypatch, back
):
    """For as long as a run without a deadline waits, and no longer."""
    train_messages(strategy, grid, 2)
    everyone = set(evaluate_messages(strategy, grid, 2))
    train_messages(strategy, grid, 2)
    lost, now = sorted(everyone)[0], [0.0]
    kept = grid.capabilities.pop(lost)

    def sleep(seconds):
        now[0] += 25.0
        if back and now[0] >= 50.0:
            grid.capabilities[lost] = kept

    monkeypatch.setattr(client_registry, "sleep", sleep)
    monkeypatch.setattr(client_registry.time, "monotonic", lambda: now[0])
    asked = set(evaluate_messages(strategy, grid, 2))
    assert (lost in asked) == back
    assert now[0] == (50.0 if back else 75.0)


def test_the_spread_of_the_clients_accuracies(strategy, grid):
    grid.capabilities[NODES[3]] = capability(3, held_out=12)
    messages = evaluated(strategy, grid)
    examples = {NODES[3]: 12}
    replies = [
        evaluation_reply(messages[n], correct, examples.get(n, 4))
        for n, correct in zip(NODES, (0, 1, 2, 12), strict=True)
    ]
    metrics = strategy.aggregate_evaluate(2, replies)
    # accuracies 0, 1/4, 1/2, 1 of 4, 4, 4, 12 examples
    assert metrics["mean"] == pytest.approx(15 / 24)
    assert (metrics["min"], metrics["median"], metrics["max"]) == (0.0, 0.375, 1.0)
    assert strategy.record.client_metrics["accuracy"] == Spread(**metrics)


def test_clients_without_held_out_examples_are_not_asked(strategy, grid):
    grid.capabilities[NODES[1]] = capability(1, held_out=0)
    assert NODES[1] not in evaluated(strategy, grid)


@pytest.mark.parametrize(
    "changes",
    [
        {"correct": math.nan},
        {"correct": 5},
        {"num-examples": 7},
        {"loss-sum": math.inf},
        {"correct": 50, "presented": 100},
        {"correct": 0, "presented": 0},
    ],
)
def test_a_wrong_evaluation_counts_for_nothing(strategy, grid, changes):
    messages = evaluated(strategy, grid)
    replies = [
        evaluation_reply(messages[NODES[0]], 3),
        evaluation_reply(messages[NODES[1]], **({"correct": 3} | changes)),
        error_to(messages[NODES[2]]),
    ]
    metrics = strategy.aggregate_evaluate(2, replies)
    assert (metrics["mean"], metrics["min"], metrics["max"]) == (0.75, 0.75, 0.75)
    assert set(strategy.clients.known_mask) == {NODES[0]}


def test_no_evaluation_at_all(strategy, grid):
    messages = evaluated(strategy, grid)
    assert strategy.aggregate_evaluate(2, [error_to(m) for m in messages.values()]) is None
    assert strategy.record.client_metrics == {}
