"""Learning tasks: metrics by hand, sums that add up exactly, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mest_fed.data import Batch
from mest_fed.errors import InputError, ObjectiveError
from mest_fed.training import (
    CLASSIFICATION,
    ForgettingState,
    LocalTrainer,
    Metric,
    Metrics,
    Objective,
    evaluate,
    judge,
    objective_of,
    try_objective,
)
from mest_fed.training.tasks import MultiLabel, NextToken, Regression


class Rows(nn.Module):
    """Gives its own rows as outputs: the inputs are their numbers."""

    def __init__(self, outputs):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(outputs))

    def forward(self, numbers):
        return self.rows[numbers.long()]


def batch_of(targets, first=0):
    targets = torch.tensor(targets)
    rows = np.arange(first, first + len(targets))
    return Batch(torch.from_numpy(rows), targets, rows)


def values_of(objective, outputs, targets):
    """Evaluate in batches of one and together; both must agree."""
    net = Rows(outputs)
    together = evaluate(net, [batch_of(targets)], objective).values(objective)
    apart = [batch_of(targets[i : i + 1], first=i) for i in range(len(targets))]
    assert evaluate(net, apart, objective).values(objective) == pytest.approx(together)
    return together


def test_classification_by_hand():
    values = values_of(CLASSIFICATION, [[0.0, 0.0], [1.0, 0.0]], [0, 1])
    assert values["accuracy"] == 0.5
    assert values["loss"] == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2)


def test_next_token_by_hand():
    # One example of two tokens, one of a token and a place that does not count.
    even, sure = [0.0, 0.0], [math.log(3), 0.0]  # probabilities 1/2, 1/2 and 3/4, 1/4
    objective = NextToken(ignore=9)
    values = values_of(objective, [[even, sure], [sure, even]], [[0, 0], [1, 9]])
    losses = math.log(2) + math.log(4 / 3) + math.log(4)
    assert values["loss"] == pytest.approx(losses / 3)  # by tokens, not by examples
    assert values["perplexity"] == pytest.approx(math.exp(losses / 3))
    assert values["accuracy"] == pytest.approx(2 / 3)


def test_each_token_weighs_the_same_in_the_gradient():
    outputs = [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    batch = batch_of([[0, 1], [1, -100]])
    for micro_batch in (1, 2):
        net = Rows(outputs)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        totals = LocalTrainer(net, optimizer, micro_batch=micro_batch, objective=NextToken()).fit(
            [batch]
        )
        expected = [[[1 / 6, -1 / 6], [-1 / 6, 1 / 6]], [[-1 / 6, 1 / 6], [0.0, 0.0]]]
        torch.testing.assert_close(net.rows.detach(), torch.tensor(expected))
        assert (totals.examples, totals.count) == (2, 3)


def test_a_batch_of_which_nothing_counts_teaches_nothing():
    net = Rows([[[1.0, 2.0]]])
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    totals = LocalTrainer(net, optimizer, micro_batch=1, objective=NextToken()).fit(
        [batch_of([[-100]])]
    )
    assert net.rows.tolist() == [[[1.0, 2.0]]]
    assert totals.values(NextToken()) == {}


def test_next_token_is_correct_by_the_share_of_its_tokens():
    outputs = [[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]]
    batches = [batch_of([[0, 1], [1, 1]])]
    assert judge(Rows(outputs), batches, NextToken()).tolist() == [True, False]
    assert judge(Rows(outputs), batches, NextToken(correct_share=1.0)).tolist() == [False, False]


@pytest.mark.parametrize("flat", [True, False])
def test_regression_by_hand(flat):
    targets = [1.0, 5.0] if flat else [[1.0], [5.0]]
    values = values_of(Regression(), [[2.0], [2.0]], targets)
    assert values == pytest.approx({"mse": (1 + 9) / 2, "mae": 2.0, "loss": 5.0})


def test_regression_of_several_numbers_and_other_losses():
    outputs, targets = [[0.0, 0.0]], [[1.0, 3.0]]
    values = values_of(Regression(loss="mae"), outputs, targets)
    assert values == pytest.approx({"mse": 5.0, "mae": 2.0, "loss": 2.0})
    assert values_of(Regression(loss="huber"), outputs, targets)["loss"] == pytest.approx(
        (0.5 + 2.5) / 2
    )


def test_regression_takes_whole_numbers_and_judges_within_its_tolerance():
    batches = [batch_of([3, 5])]
    assert judge(Rows([[3.4], [3.4]]), batches, Regression(tolerance=0.5)).tolist() == [True, False]
    with pytest.raises(ObjectiveError, match="forgetting needs to know"):
        judge(Rows([[3.4], [3.4]]), batches, Regression())


def test_multi_label_by_hand():
    outputs = [[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]]
    targets = [[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    values = values_of(MultiLabel(), outputs, targets)
    assert values["label-accuracy"] == pytest.approx(4 / 6)
    assert values["f1"] == pytest.approx(2 * 2 / (3 + 3))  # given and true 2, given 3, true 3
    wrong, right = math.log(1 + math.e), math.log(1 + 1 / math.e)
    assert values["loss"] == pytest.approx((4 * right + 2 * wrong) / 6)
    assert judge(Rows(outputs), [batch_of(targets)], MultiLabel()).tolist() == [False, False]
    assert values_of(MultiLabel(), [[-1.0]], [[0.0]])["f1"] == 1.0


@pytest.mark.parametrize(
    ("objective", "shape", "count"),
    [
        (CLASSIFICATION, (), 7),
        (NextToken(), (5,), 7),
        (Regression(), (), 1),
        (Regression(), (2, 3), 6),
        (MultiLabel(), (4,), 4),
    ],
)
def test_how_many_outputs_a_model_needs(objective, shape, count):
    assert objective.num_outputs(shape, 7) == count


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_metrics_of_parts_are_those_of_the_whole(data):
    count = data.draw(st.integers(1, 12))
    cut = data.draw(st.integers(0, count))
    source = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    outputs = torch.randn(count, 4, generator=source)
    targets = torch.randint(2, (count, 4), generator=source).float()
    for objective in (MultiLabel(), Regression()):
        parts = []
        for part in (slice(0, cut), slice(cut, count)):
            totals = Metrics()
            if len(targets[part]):
                given = outputs[part], targets[part]
                loss = objective.total_loss(*given).item()
                totals.add(loss, targets[part], objective, objective.sums(*given))
            parts.append(totals)
        both, whole = Metrics(), Metrics()
        for totals in parts:
            both.loss += totals.loss
            both.count += totals.count
            both.add_sums(totals.sums or dict.fromkeys(parts[1].sums or parts[0].sums, 0.0))
        loss = objective.total_loss(outputs, targets).item()
        whole.add(loss, targets, objective, objective.sums(outputs, targets))
        assert both.values(objective) == pytest.approx(whole.values(objective))


class MacroRecall(Objective):
    """A metric that needs a sum for each class."""

    metrics = (Metric("macro-recall", higher_is_better=True, share=True),)

    def losses(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def sums(self, outputs, targets):
        right = nn.functional.one_hot(targets, 2) * (outputs.argmax(1) == targets).unsqueeze(1)
        return {"right": right.sum(0), "there": torch.bincount(targets, minlength=2)}

    def values(self, sums):
        return {"macro-recall": np.mean(sums["right"] / sums["there"])}


def test_sums_may_be_vectors():
    net, apart = Rows([[1.0, 0.0]] * 4), [batch_of([0, 1]), batch_of([0, 0], first=2)]
    totals = evaluate(net, apart, MacroRecall())
    assert totals.sums["there"].tolist() == [3.0, 1.0]
    assert totals.values(MacroRecall())["macro-recall"] == 0.5


class Own(Objective):
    """A task whose parts are replaced by what a test wants to see refused."""

    metrics = (Metric("close", higher_is_better=True, share=True),)

    def losses(self, outputs, targets):
        return (outputs[:, 0] - targets).square()

    def sums(self, outputs, targets):
        return {"close": (outputs[:, 0] == targets).sum()}

    def values(self, sums):
        return {"close": sums["close"] / sums["count"]}


def own(**parts):
    return type("Own", (Own,), parts)()


OUTPUTS, TARGETS = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0])


def test_a_task_of_ones_own_is_tried():
    totals = try_objective(own(), OUTPUTS, TARGETS, key="task")
    assert totals.values(own()) == pytest.approx({"close": 2 / 3, "loss": 1 / 3})


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"losses": lambda s, o, t: (o[:, 0] - t).mean()}, r"losses\(\) returned shape \(\)"),
        ({"losses": lambda s, o, t: o[:2, 0] - t[:2]}, r"shape \(2,\) for 3 examples"),
        ({"losses": lambda s, o, t: o - t}, r"shape \(3, 3\) for 3 examples"),
        ({"losses": lambda s, o, t: 1.0}, r"losses\(\) returned float; allowed: a tensor"),
        ({"losses": lambda s, o, t: (o[:, 0] - 2).log()}, "nan for example 0 of the batch"),
        ({"losses": lambda s, o, t: 1 / (o[:, 0] - t - 1)}, "inf for example 2 of the batch"),
        ({"losses": lambda s, o, t: t * 1.0}, "does not depend on outputs"),
        ({"losses": lambda s, o, t: o[:, 7]}, "IndexError: index 7"),
        ({"sums": lambda s, o, t: {"close": "many"}}, "close as str; allowed: a number"),
        ({"sums": lambda s, o, t: {"close": o}}, r"close as an array of shape \(3, 1\)"),
        ({"sums": lambda s, o, t: {"count": 1}}, "returned 'count'; allowed: identifiers"),
        ({"sums": lambda s, o, t: {"a-b": 1}}, "returned 'a-b'; allowed: identifiers"),
        ({"values": lambda s, sums: {}}, "returned nothing; the metric close is missing"),
        ({"values": lambda s, sums: {"close": None}}, "close as NoneType"),
        ({"values": lambda s, sums: {"close": 1.5}}, "close = 1.5; allowed: a share"),
        ({"values": lambda s, sums: sums["far"]}, "raised KeyError: 'far'"),
        ({"count": lambda s, t: -1}, r"count\(\) returned -1"),
        ({"count": lambda s, t: 0}, r"count\(\) returned 0"),
        ({"correct": lambda s, o, t: o[:, 0]}, r"shape \(3,\) \(torch.float32\); allowed: None"),
        ({"metrics": (Metric("loss", higher_is_better=True),)}, "metric 'loss' is not allowed"),
        ({"metrics": (Metric("a b", higher_is_better=True),)}, "metric 'a b' is not allowed"),
        ({"metrics": ("accuracy",)}, "metrics holds 'accuracy'"),
    ],
)
def test_a_task_that_does_not_work_is_refused_in_one_line(parts, reason):
    with pytest.raises(InputError, match=f"^task: .*{reason}") as caught:
        try_objective(own(**parts), OUTPUTS, TARGETS, key="task")
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_names_its_batch():
    class Late(Own):
        def losses(self, outputs, targets):
            return super().losses(outputs, targets) / (3 - targets).sign()

    net = Rows(OUTPUTS.tolist())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    trainer = LocalTrainer(net, optimizer, micro_batch=2, objective=Late())
    batches = [batch_of([1.0, 2.0]), batch_of([1.0, 2.0, 3.0])]
    with pytest.raises(ObjectiveError, match=r"^batch 2: losses\(\) returned inf for example 0"):
        trainer.fit(batches)


def test_sums_must_stay_of_one_kind():
    totals = Metrics()
    totals.add_sums({"a": 1.0})
    with pytest.raises(ObjectiveError, match="returned b, and before a"):
        totals.add_sums({"b": 1.0})
    with pytest.raises(ObjectiveError, match=r"a of shape \(2,\), and before of \(\)"):
        totals.add_sums({"a": np.zeros(2)})


def test_forgetting_goes_by_what_the_task_calls_correct():
    net, state = Rows([[1.0], [2.0]]), ForgettingState.fresh(2)
    objective = Regression(tolerance=0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    trainer = LocalTrainer(net, optimizer, micro_batch=1, forgetting=state, objective=objective)
    trainer.fit([batch_of([1.2, 4.0])])
    assert state.learned.tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("clasification", {}, "task.name = 'clasification' is not allowed; allowed: .*next-token"),
        ("regression", {"loss": "log"}, "task.options.loss = 'log' is not allowed; allowed: mse"),
        ("regression", {"tolerance": -1}, "task.options.tolerance = -1 is not allowed"),
        ("next-token", {"correct_share": 0}, "task.options.correct_share = 0 is not allowed"),
        ("multi-label", {"threshold": 1}, "task.options.threshold = 1 is not allowed"),
        ("regression", {"los": "mse"}, "task.options.*'los'"),
    ],
)
def test_names_and_options_that_are_not_allowed(name, options, reason):
    with pytest.raises(InputError, match=reason):
        objective_of(name, json.dumps(options))


@pytest.mark.parametrize(
    ("name", "outputs", "targets"),
    [
        ("next-token", torch.zeros(3, 10), torch.zeros(3, dtype=torch.int64)),
        ("regression", torch.zeros(3, 2), torch.zeros(3)),
        ("multi-label", torch.zeros(3, 2), torch.zeros(3, 4)),
        ("classification", torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)),
        ("classification", torch.zeros(3, 2), torch.full((3,), 2)),
    ],
)
def test_targets_of_another_task_are_refused_in_one_line(name, outputs, targets):
    with pytest.raises(InputError, match=r"^key: ") as caught:
        try_objective(objective_of(name), outputs, targets, key="key")
    assert "\n" not in str(caught.value)
