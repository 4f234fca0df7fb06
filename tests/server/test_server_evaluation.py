"""Central evaluation: when it is due, and what a record says of a model that diverged."""

from dataclasses import asdict

import numpy as np
import pytest
from flwr.app import ArrayRecord
from server_parts import strategy_of

from mest_fed.schema import FailureKind, TaskStatus
from mest_fed.server.app import CentralEvaluation
from mest_fed.server.client_evaluation import spread_of
from mest_fed.server.round_record import ClientOutcome, RoundRecord
from mest_fed.training import CLASSIFICATION, Metrics


def evaluated(strategy, number, server_round=None):
    """Evaluate after a round; return what the observer saw and what Flower gets."""
    seen = []
    strategy.record = RoundRecord(number, 0.2)
    evaluation = CentralEvaluation(strategy.task, strategy, seen.append)
    metrics = evaluation(number if server_round is None else server_round, ArrayRecord())
    return seen, metrics


def test_accuracy_on_the_test_set():
    strategy = strategy_of()
    (record,), metrics = evaluated(strategy, 0)
    assert 0 <= record.metrics["accuracy"] <= 1
    assert record.metrics["loss"] == pytest.approx(2.3, abs=1)
    assert dict(metrics) == record.metrics


def test_when_it_is_due():
    strategy = strategy_of(server={"evaluate_every": 3})  # of 8 rounds
    due = [n for n in range(9) if evaluated(strategy, n)[0][0].metrics]
    assert due == [0, 3, 6, 8]


def test_every_round_is_observed():
    strategy = strategy_of(server={"central_evaluation": False})
    for number in (0, 1, 8):
        (record,), metrics = evaluated(strategy, number)
        assert record.metrics == {}
        assert metrics is None


def test_a_resumed_run_does_not_report_its_round_again():
    strategy = strategy_of()
    strategy.first_round = 4
    assert evaluated(strategy, 4, server_round=0) == ([], None)
    assert len(evaluated(strategy, 5, server_round=1)[0]) == 1


def test_a_loss_that_is_no_number_is_none():
    strategy = strategy_of()
    for name, values in strategy.model.dense.items():
        if name.endswith("weight") and values.ndim == 2:  # the classifier
            strategy.model.dense[name] = np.full_like(values, 3e38)
    (record,), metrics = evaluated(strategy, 1)
    assert record.metrics.keys() == {"accuracy"}
    assert 0 <= record.metrics["accuracy"] <= 1
    assert dict(metrics) == record.metrics


def test_counts_of_a_round():
    clients = [
        ClientOutcome(n, n, "d", failure)
        for n, failure in enumerate([None, FailureKind.AWAY, None])
    ]
    record = RoundRecord(1, 0.1, clients=clients)
    assert [record.count(status) for status in TaskStatus] == [2, 0, 0, 1, 0, 0, 0, 0]
    assert record.without_reply == 1


def test_the_spread_by_hand():
    # mean (1 * 0 + 3 * 1) / 4; quantiles of 0, 1 alone
    clients = [Metrics(1.0, 1, 1, {"correct": 0.0}), Metrics(1.0, 3, 3, {"correct": 3.0})]
    got = spread_of(clients, CLASSIFICATION)["accuracy"]
    want = {"mean": 0.75, "min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    assert asdict(got) == pytest.approx(want)
