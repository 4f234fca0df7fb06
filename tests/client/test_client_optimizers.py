"""Rounds of one client with each optimizer: repeated bits, FedProx's term, work, mutation."""

import json

import numpy as np
import pytest
from client_parts import context_of, instruction, small_config, start_of, task_of

from mest_fed.catalogue import OPTIMIZERS
from mest_fed.client.app import app
from mest_fed.errors import InputError
from mest_fed.wire import decode, mask_hash
from mest_fed.wire.records import from_record

RATES = {"sgd": 0.05}


def config_of(name="sgd", *, sparsity=None, **training):
    keys = {"optimizer": name, "learning_rate": RATES.get(name, 0.002), "device": "cpu"}
    return small_config(training=keys | training, sparsity=sparsity or {})


def train(config, *, number=1, mutate=False, context=None):
    """Train a round from the fresh model; return what the server decodes, and the metrics."""
    start = start_of(config)
    message = instruction(config, start, number=number, mutate=mutate)
    reply = app(message, context_of(config) if context is None else context)
    known = {mask_hash(start.masks): start.masks}
    state = decode(from_record(reply.content), task_of(config).spec, known=known, reference=start)
    return start, state, reply.content["metrics"]


def values(state):
    return np.concatenate(
        [part.ravel() for part in (*state.values.values(), *state.dense.values())]
    )


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        *(("unstructured", "rigl"), ("block", "mest-ems"), ("pattern", "mest-em")),
        *(("channel", "rigl"), ("block:8", "set")),
    ],
)
def test_adam_trains_under_schemes_and_methods(scheme, method):
    sparsity = {"scheme": scheme, "method": method, "mutation": "client", "density": 0.2}
    config = config_of("adam", sparsity=sparsity, proximal=0.1, clip_norm=1.0)
    start, update, metrics = train(config, mutate=True)
    assert {g: len(s) for g, s in update.masks.items()} == {
        g: len(s) for g, s in start.masks.items()
    }
    if method != "mest-ems":  # of which few grown weights outlast so short a round
        assert any(not np.array_equal(update.masks[g], start.masks[g]) for g in start.masks)
    assert metrics["presented"] > 0


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_no_state_of_the_optimizer_outlives_a_round(name):
    config = config_of(name, proximal=0.1)
    context = context_of(config)
    _, first, _ = train(config, context=context)
    train(config, number=2, context=context)
    _, again, _ = train(config, context=context)
    np.testing.assert_array_equal(values(first), values(again))
    _, fresh, _ = train(config)
    np.testing.assert_array_equal(values(first), values(fresh))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_proximal_term_keeps_clients_near_the_received_model(name):
    distances = []
    for proximal in (0.0, 10.0):
        config = config_of(name, proximal=proximal, momentum=0.0)
        start, update, _ = train(config)
        distances.append(np.linalg.norm(values(update) - values(start)))
    assert distances[0] > distances[1] > 0


BEYOND_SGD = (
    ({"name": "adam"}, 9),
    ({"name": "sgd", "proximal": 0.1}, 3),
    ({"name": "adamw", "proximal": 0.1, "clip_norm": 1.0}, 15),
)


def test_what_an_optimizer_does_beyond_sgd_is_counted_as_dense_work_of_torch():
    config = config_of(engine="torch")
    start, _, plain = train(config)
    weights = sum(v.size for v in start.values.values())
    spec = task_of(config).spec
    weights += sum(
        start.dense[n].size for n, _ in task_of(config).model.named_parameters() if n in spec.dense
    )
    steps = round(plain["presented"] / config.training.batch_size)  # a small rest joins a batch
    for keys, each in BEYOND_SGD:
        _, _, metrics = train(config_of(engine="torch", **keys))
        assert metrics["flops-sparse"] == plain["flops-sparse"]
        assert metrics["flops-dense"] - plain["flops-dense"] == each * weights * steps


def test_a_program_counts_the_bytes_of_its_optimizer():
    _, _, plain = train(config_of())
    for keys, _ in BEYOND_SGD:
        _, _, metrics = train(config_of(**keys))
        assert metrics["flops-dense"] == plain["flops-dense"]
        assert metrics["bytes-moved"] > plain["bytes-moved"]
        assert metrics["core-seconds"] >= plain["core-seconds"]


@pytest.mark.parametrize(
    ("planned", "training", "refused"),
    [
        ({}, {"optimizer": "adam"}, "optimizer = 'sgd' is not allowed; allowed: 'adam'"),
        ({}, {"proximal": 0.1}, "proximal = False is not allowed; allowed: True"),
        (
            {"release_gradients": True},
            {"clip_norm": 1.0},
            "release_gradients = True is not allowed",
        ),
    ],
)
def test_a_given_plan_for_another_optimizer_is_refused(planned, training, refused):
    plan = task_of(small_config()).planner().smallest().as_table() | planned
    config = small_config(training={"device": "cpu", **training})
    context = context_of(config, plan=json.dumps(plan))
    with pytest.raises(InputError, match=refused):
        app(instruction(config, start_of(config)), context)


def test_a_tight_budget_drops_the_first_moment_and_the_round_follows():
    config = config_of("adam")
    planner = task_of(config).planner()
    least = planner.smallest()
    assert not least.shape.momentum
    assert not least.memory.release_gradients
    reply = app(instruction(config, start_of(config)), context_of(config, budget=least.budget))
    assert reply.content["metrics"]["presented"] > 0


@pytest.mark.parametrize(
    "training", [{"optimizer": "adam"}, {"optimizer": "adamw"}, {"clip_norm": 1.0}]
)
def test_gradients_that_are_needed_whole_cannot_be_released(training):
    with pytest.raises(
        InputError, match=r"memory\.release_gradients = True is not allowed"
    ) as said:
        small_config(training=training, memory={"release_gradients": True})
    assert "\n" not in str(said.value)
    task = task_of(small_config(training=training))
    assert not task.planner().smallest().memory.release_gradients


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("optimizer", "lion"), ("beta1", 1.0), ("beta2", -0.1), ("eps", 0.0)),
        *(("clip_norm", -1.0), ("proximal", -0.1), ("proximal", float("nan"))),
    ],
)
def test_values_that_cannot_be_are_refused(key, value):
    with pytest.raises(InputError, match=f"training.{key} = .* is not allowed") as said:
        small_config(training={key: value})
    assert "\n" not in str(said.value)
