"""Rules that end a run, by hand: thresholds, patience, and the best round."""

import math

import pytest

from mest_fed.config.stopping import StopRule
from mest_fed.errors import InputError
from mest_fed.server.progress import Progress
from mest_fed.training import CLASSIFICATION
from mest_fed.training.tasks import Regression


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", None),
        ("  ", None),
        ("accuracy >= 0.95", StopRule("accuracy", ">=", 0.95)),
        ("accuracy>=.95", StopRule("accuracy", ">=", 0.95)),
        ("label-accuracy >= 1e-1", StopRule("label-accuracy", ">=", 0.1)),
        ("loss <= -2", StopRule("loss", "<=", -2.0)),
    ],
)
def test_rules(text, rule):
    assert StopRule.parse(text) == rule


def test_patience():
    for text in ("no improvement of loss in 10 rounds", "no  improvement of loss in 10 round"):
        rule = StopRule.parse(text)
        assert (rule.metric, rule.comparison, rule.rounds) == ("loss", "", 10)


@pytest.mark.parametrize(
    "text",
    [
        "accuracy",
        "accuracy > 0.9",
        "accuracy == 0.9",
        "accuracy >= nan",
        "accuracy >= 95%",
        "0.9 <= accuracy",
        "accuracy >= 0.9 or loss <= 1",
        "no improvement of loss in 0 rounds",
        "no improvement of loss in ten rounds",
        "no improvement in 10 rounds",
        "__import__('os')",
    ],
)
def test_what_is_no_rule(text):
    with pytest.raises(InputError, match=r"is no rule; allowed: 'METRIC >= NUMBER'"):
        StopRule.parse(text)


def test_a_metric_that_the_task_has_not():
    with pytest.raises(InputError, match="names 'accuracy', which the task has not; allowed: mse"):
        Progress.of(Regression(), "accuracy >= 0.9")


def stopped_after(rule, rows, objective=CLASSIFICATION):
    """Return the round after which a run stops whose evaluations are (round, values)."""
    progress = Progress.of(objective, rule)
    for number, values in rows:
        progress.see(number, values)
        if progress.stopped:
            return number
    return None


def losses(*values):
    return [(number, {"loss": value}) for number, value in enumerate(values)]


def test_a_threshold_stops_the_run_when_it_is_reached_after_round_0():
    rows = [(n, {"accuracy": a, "loss": 1 - a}) for n, a in enumerate((0.95, 0.8, 0.9, 0.95))]
    assert stopped_after("accuracy >= 0.9", rows) == 2
    assert stopped_after("loss <= 0.05", rows[:3]) is None


def test_patience_counts_rounds_since_the_best():
    assert stopped_after("no improvement of loss in 2 rounds", losses(3, 2, 2, 2, 1)) == 3
    assert stopped_after("no improvement of loss in 2 rounds", losses(3, 2, 2.5, 1, 2, 2)) == 5


def test_patience_goes_by_rounds_where_not_all_are_evaluated():
    rows = [(0, {"loss": 3.0}), (1, {}), (2, {"loss": 4.0}), (3, {}), (4, {"loss": 4.0})]
    assert stopped_after("no improvement of loss in 3 rounds", rows) == 3


def test_what_is_no_number_is_no_improvement():
    assert (
        stopped_after("no improvement of loss in 2 rounds", losses(3, 2, math.nan, math.nan)) == 3
    )


@pytest.mark.parametrize(
    ("objective", "name", "best"), [(CLASSIFICATION, "accuracy", 1), (Regression(), "mse", 0)]
)
def test_the_best_round_goes_by_the_direction_and_the_first_of_equals(objective, name, best):
    progress = Progress.of(objective, "")
    seen = [progress.see(n, {name: value}) for n, value in enumerate((0.1, 0.5, 0.5, 0.2))]
    assert progress.best.round == best
    assert seen == [True, best == 1, False, False]


def test_progress_comes_back_from_its_facts():
    progress = Progress.of(CLASSIFICATION, "no improvement of loss in 2 rounds")
    for number, values in losses(3, 2, 2):
        progress.see(number, values | {"accuracy": 0.5})
    again = Progress.of(CLASSIFICATION, "no improvement of loss in 2 rounds")
    again.restore(progress.facts())
    assert again == progress
    again.see(3, {"loss": 2.0})
    assert "loss had not improved since round 1" in again.stopped


@pytest.mark.parametrize(
    "facts", [{}, {"best": [1.0], "improved": None, "stopped": ""}, {"best": 3}, {"best": ["x", 1]}]
)
def test_facts_of_something_else(facts):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Progress.of(CLASSIFICATION, "").restore(facts)
