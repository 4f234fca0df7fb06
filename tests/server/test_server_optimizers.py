"""Server optimizers against their formulas, worked by hand."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as strategies
from server_parts import column, line_model, line_state

from mest_fed.catalogue import SERVER_OPTIMIZERS
from mest_fed.errors import InputError
from mest_fed.server.aggregation.masked import MaskedMean, PositionCache
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.optimizers import build_optimizer
from mest_fed.sparsity.state import ModelSpec, SparseState

OLD = np.array([1.0, -2.0], np.float32)


def two_steps(optimizer, first, second):
    """Take two steps from OLD along two pseudo-gradients; return the weights after each."""
    once = optimizer.step("w", OLD, np.array(first, np.float32))
    return once, optimizer.step("w", once, np.array(second, np.float32))


def test_fedavg_at_rate_1_is_the_average():
    average = np.array([0.25, 3.0], np.float32)
    new = build_optimizer("fedavg").step("w", OLD, OLD - average)
    assert new.tolist() == [0.25, 3.0]


def test_fedavg_at_rate_half_goes_half_way():
    new = build_optimizer("fedavg", learning_rate=0.5).step(
        "w", OLD, np.array([2.0, -4.0], np.float32)
    )
    assert new.tolist() == [0.0, 0.0]


def test_fedavgm_two_steps():
    once, twice = two_steps(
        build_optimizer("fedavgm", learning_rate=0.5, momentum=0.5), [2.0, 4.0], [1.0, 0.0]
    )
    # m1 = [2, 4]; w1 = [1, -2] - 0.5 m1
    assert once.tolist() == [0.0, -4.0]
    # m2 = 0.5 m1 + [1, 0] = [2, 2]; w2 = w1 - 0.5 m2
    assert twice.tolist() == [-1.0, -5.0]


def test_fedadam_two_steps():
    optimizer = build_optimizer("fedadam", learning_rate=0.1)
    once, twice = two_steps(optimizer, [2.0, 4.0], [1.0, 0.0])
    # m1 = 0.1 g1 = [0.2, 0.4]; v1 = 0.01 g1^2 = [0.04, 0.16]; sqrt(v1) = [0.2, 0.4]
    step = 0.1 * np.array([0.2 / 0.201, 0.4 / 0.401])
    np.testing.assert_allclose(once, OLD - step, rtol=1e-6)
    # m2 = 0.9 m1 + 0.1 g2 = [0.28, 0.36]; v2 = 0.99 v1 + 0.01 g2^2 = [0.0496, 0.1584]
    step = 0.1 * np.array([0.28, 0.36]) / (np.sqrt([0.0496, 0.1584]) + 1e-3)
    np.testing.assert_allclose(twice, once - step, rtol=1e-6)


def test_fedyogi_two_steps():
    optimizer = build_optimizer("fedyogi", learning_rate=0.1, momentum=0.5, beta2=0.75, tau=0.5)
    once, twice = two_steps(optimizer, [2.0, 4.0], [1.0, 0.0])
    # m1 = [1, 2]; v1 = 0 - 0.25 g1^2 sign(0 - g1^2) = [1, 4]
    np.testing.assert_allclose(once, OLD - 0.1 * np.array([1 / 1.5, 2 / 2.5]), rtol=1e-6)
    # m2 = [1, 1]; v2 = v1 - 0.25 g2^2 sign(v1 - g2^2) = [1 - 0.25 * 0, 4]
    np.testing.assert_allclose(twice, once - 0.1 * np.array([1 / 1.5, 1 / 2.5]), rtol=1e-6)
    optimizer.step("w", twice, np.array([0.5, 0.0], np.float32))  # v3 = [1 - 0.25 * 0.25, 4]
    assert optimizer.moments["second"]["w"].tolist() == [0.9375, 4.0]


def test_fedadagrad_two_steps():
    optimizer = build_optimizer("fedadagrad", learning_rate=0.1, tau=0.5)
    once, twice = two_steps(optimizer, [3.0, 4.0], [4.0, 0.0])
    # v1 = [9, 16]; v2 = [25, 16]; there is no momentum
    np.testing.assert_allclose(once, OLD - 0.1 * np.array([3 / 3.5, 4 / 4.5]), rtol=1e-6)
    np.testing.assert_allclose(twice, once - 0.1 * np.array([4 / 5.5, 0]), rtol=1e-6)


def flowers(name, rate):
    """Return Flower's strategy of the same name."""
    if name == "fedavg":
        return strategies.FedAvg()
    if name == "fedavgm":
        return strategies.FedAvgM(server_learning_rate=rate, server_momentum=0.9)
    kind = {
        "fedadam": strategies.FedAdam,
        "fedyogi": strategies.FedYogi,
        "fedadagrad": strategies.FedAdagrad,
    }
    return kind[name](eta=rate, tau=1e-3)


def flowers_round(strategy, number, model, updates):
    """Have Flower's strategy average a round's updates; return its new arrays."""

    def record(state):
        return ArrayRecord({name: Array(array) for name, array in state.items()})

    is_fedavgm = isinstance(strategy, strategies.FedAvgM)
    strategy.current_arrays = record(model) if is_fedavgm else dict(model)
    replies = []
    for node, (state, examples) in enumerate(updates):
        content = RecordDict(
            {"arrays": record(state), "metrics": MetricRecord({"num-examples": examples})}
        )
        asked = Message(RecordDict(), dst_node_id=node + 1, message_type="train")
        replies.append(Message(content, reply_to=asked))
    averaged, _ = strategy.aggregate_train(number, replies)
    return {name: array.numpy() for name, array in averaged.items()}


@pytest.mark.parametrize("name", list(SERVER_OPTIMIZERS))
def test_on_a_dense_model_it_is_flower_s_strategy(name):
    draws = np.random.default_rng(1)
    spec = ModelSpec({}, {}, {"weight": (5, 3), "bias": (5,)}, frozenset())

    def drawn():
        return {n: draws.standard_normal(s).astype(np.float32) for n, s in spec.dense.items()}

    theirs = drawn()
    model = GlobalModel.from_state(spec, SparseState({}, {}, dict(theirs)))
    rate = 1.0 if name == "fedavg" else 0.1
    optimizer = build_optimizer(name, learning_rate=rate)
    strategy = flowers(name, rate)
    for number in range(1, 6):
        updates = [(drawn(), examples) for examples in (1, 3, 6)]
        theirs = flowers_round(strategy, number, theirs, updates)
        if name == "fedadam":  # Flower corrects the rate for moments that begin at zero
            optimizer.learning_rate = rate * (1 - 0.99 ** (number + 1)) ** 0.5
            optimizer.learning_rate /= 1 - 0.9 ** (number + 1)
        mean = MaskedMean(spec, PositionCache(spec))
        for state, examples in updates:
            mean.add(SparseState({}, {}, state), examples)
        model.apply_update(mean, optimizer)
        for tensor, array in theirs.items():
            np.testing.assert_allclose(model.dense[tensor], array, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(SERVER_OPTIMIZERS))
def test_a_weight_that_no_client_held_keeps_its_moments(name):
    optimizer = build_optimizer(name, learning_rate=0.1)
    once = optimizer.step("w", OLD, np.array([2.0, 4.0], np.float32))
    before = {kind: moments["w"].copy() for kind, moments in optimizer.moments.items()}
    held = np.array([True, False])
    twice = optimizer.step("w", once, np.array([1.0, 0.0], np.float32), held)
    assert twice[1] == once[1]
    assert twice[0] != once[0]
    for kind, moments in before.items():
        assert optimizer.moments[kind]["w"][1] == moments[1] != 0
        assert optimizer.moments[kind]["w"][0] != moments[0]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("fedavgm", ["first"]),
        ("fedadam", ["first", "second"]),
        ("fedyogi", ["first", "second"]),
        ("fedadagrad", ["first", "second"]),
    ],
)
def test_moments_of_inactive_weights_are_cleared(name, kinds):
    optimizer = build_optimizer(name)
    optimizer.step("w", OLD, np.array([2.0, 4.0], np.float32))
    before = {kind: moments["w"].copy() for kind, moments in optimizer.moments.items()}
    optimizer.forget("w", np.array([True, False]))
    optimizer.forget("another", np.array([True]))
    assert list(optimizer.moments) == kinds
    for kind in kinds:
        assert optimizer.moments[kind]["w"].tolist() == [0.0, before[kind][1]]
        assert before[kind][0] != 0


def test_the_global_model_clears_moments_of_dropped_and_grown_weights():
    model = line_model({0: 3.0, 1: 0.1}, weights=3)
    optimizer = build_optimizer("fedavgm")
    mean = MaskedMean(model.spec, PositionCache(model.spec))
    slots = np.array([0, 1, 2], np.int32)
    mean.add(SparseState({"w": slots}, {"w": column([2.0, 0.2, 1.0])}, {}), 1)
    model.apply_update(mean, optimizer)
    assert (optimizer.moments["first"]["w"] != 0).all()
    model.adopt_masks(optimizer)  # 1 dies, 2 is born
    assert model.masks["w"].tolist() == [0, 2]
    assert optimizer.moments["first"]["w"].tolist() == [1.0, 0.0, 0.0]


def test_only_what_clients_hold_is_stepped():
    model = line_model({0: 3.0, 1: 0.5}, weights=3)
    mean = MaskedMean(model.spec, PositionCache(model.spec))
    mean.add(line_state({1: 2.0}), 4)
    model.apply_update(mean, build_optimizer("fedadam"))
    assert model.weights["w"][0] == 3.0
    assert model.weights["w"][2] == 0.0
    assert model.weights["w"][1] > 0.5


def test_an_unknown_name_is_refused():
    with pytest.raises(
        InputError,
        match=r"server\.optimizer = 'sgd'.*fedavg, fedavgm, fedadam, fedyogi, fedadagrad",
    ):
        build_optimizer("sgd")


@pytest.mark.parametrize("name", list(SERVER_OPTIMIZERS))
def test_running_statistics_are_averaged_under_every_optimizer(name):
    spec = ModelSpec({}, {}, {"weight": (1,), "var": (1,)}, frozenset({"var"}), frozenset({"var"}))

    def state(value):
        return SparseState({}, {}, {name: np.array([value], np.float32) for name in spec.dense})

    model, optimizer = GlobalModel.from_state(spec, state(4.0)), build_optimizer(name)
    for average in (2.0, 50.0, 1.0):
        mean = MaskedMean(spec, PositionCache(spec))
        mean.add(state(average), 1)
        model.apply_update(mean, optimizer)
        assert model.dense["var"].tolist() == [average]
    assert not any("var" in moments for moments in optimizer.moments.values())
