"""Server optimizers against their formulas, worked by hand."""

import numpy as np
import pytest
from server_parts import column, line_model, line_state

from mest_fed.errors import InputError
from mest_fed.nn import ModelSpec, SparseState
from mest_fed.server.aggregation.masked import MaskedMean, PositionCache
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.optimizers import build_optimizer

OLD = np.array([1.0, -2.0], np.float32)


def two_steps(optimizer, first, second):
    """Take two steps from OLD along two pseudo-gradients; return the weights after each."""
    once = optimizer.step("w", OLD, np.array(first, np.float32))
    return once, optimizer.step("w", once, np.array(second, np.float32))


def test_fedavg_at_rate_1_is_the_average():
    average = np.array([0.25, 3.0], np.float32)
    new = build_optimizer("fedavg", 1.0, 0.9).step("w", OLD, OLD - average)
    assert new.tolist() == [0.25, 3.0]


def test_fedavg_at_rate_half_goes_half_way():
    new = build_optimizer("fedavg", 0.5, 0.9).step("w", OLD, np.array([2.0, -4.0], np.float32))
    assert new.tolist() == [0.0, 0.0]


def test_fedavgm_two_steps():
    once, twice = two_steps(build_optimizer("fedavgm", 0.5, 0.5), [2.0, 4.0], [1.0, 0.0])
    # m1 = [2, 4]; w1 = [1, -2] - 0.5 m1
    assert once.tolist() == [0.0, -4.0]
    # m2 = 0.5 m1 + [1, 0] = [2, 2]; w2 = w1 - 0.5 m2
    assert twice.tolist() == [-1.0, -5.0]


def test_fedadam_two_steps():
    optimizer = build_optimizer("fedadam", 0.1, 0.9)
    once, twice = two_steps(optimizer, [2.0, 4.0], [1.0, 0.0])
    # m1 = 0.1 g1 = [0.2, 0.4]; v1 = 0.01 g1^2 = [0.04, 0.16]; sqrt(v1) = [0.2, 0.4]
    step = 0.1 * np.array([0.2 / 0.201, 0.4 / 0.401])
    np.testing.assert_allclose(once, OLD - step, rtol=1e-6)
    # m2 = 0.9 m1 + 0.1 g2 = [0.28, 0.36]; v2 = 0.99 v1 + 0.01 g2^2 = [0.0496, 0.1584]
    step = 0.1 * np.array([0.28, 0.36]) / (np.sqrt([0.0496, 0.1584]) + 1e-3)
    np.testing.assert_allclose(twice, once - step, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kinds"), [("fedavgm", ["first"]), ("fedadam", ["first", "second"])]
)
def test_moments_of_inactive_weights_are_cleared(name, kinds):
    optimizer = build_optimizer(name, 1.0, 0.9)
    optimizer.step("w", OLD, np.array([2.0, 4.0], np.float32))
    before = {kind: moments["w"].copy() for kind, moments in optimizer.moments.items()}
    optimizer.forget("w", np.array([True, False]))
    optimizer.forget("another", np.array([True]))
    assert list(optimizer.moments) == kinds
    for kind in kinds:
        assert optimizer.moments[kind]["w"].tolist() == [0.0, before[kind][1]]
        assert before[kind][0] != 0


def test_the_global_model_clears_moments_where_weights_die_or_are_born():
    model = line_model({0: 3.0, 1: 0.1}, weights=3)
    optimizer = build_optimizer("fedavgm", 1.0, 0.9)
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
    model.apply_update(mean, build_optimizer("fedadam", 1.0, 0.9))
    assert model.weights["w"][0] == 3.0
    assert model.weights["w"][2] == 0.0
    assert model.weights["w"][1] > 0.5


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"server\.optimizer = 'sgd'.*fedavg, fedavgm, fedadam"):
        build_optimizer("sgd", 1.0, 0.9)


def test_momentum_does_not_carry_a_running_variance_below_zero():
    spec = ModelSpec({}, {}, {"mean": (1,), "var": (1,)}, frozenset({"var"}))

    def state(value):
        return SparseState({}, {}, {name: np.array([value], np.float32) for name in spec.dense})

    model, optimizer = GlobalModel.from_state(spec, state(4.0)), build_optimizer("fedavgm", 1, 1)
    for average in (2.0, 2.0, 0.0):  # 4 - 2 = 2; 2 - (2 + 0) = 0; 0 - (2 + 0) = -2
        mean = MaskedMean(spec, PositionCache(spec))
        mean.add(state(average), 1)
        model.apply_update(mean, optimizer)
    assert model.dense["mean"].tolist() == [-2.0]
    assert model.dense["var"].tolist() == [0.0]
