"""The tuner: who takes part, who wins, and what is measured. No test looks at real times."""

import pytest
import torch
from tuning_cases import CUTS, fixed_times, layer_case

from mest_fed.kernels import Strips, case_of, choose, native
from mest_fed.kernels.choice import (
    EVERYTHING_DENSE,
    Choice,
    Choices,
    rule,
)
from mest_fed.kernels.tuning import candidates, time_in_turn, tune_layer, winner

PRODUCTS = ("forward", "backward_input", "backward_values")
needs_native = pytest.mark.skipif(native.variant() is None, reason="no compiled kernels")
PADDED = Choice("padded", "padded", "padded")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class StepTime:
    """Stands still but for what candidates take."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def candidate(self, name, *seconds):
        """Take so long at the first, the second, ... run, and at all further ones the last."""
        left = list(seconds)

        def run():
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


# Timing.


def test_the_median_after_a_warm_up_in_turn():
    clock = StepTime()
    candidates = {
        "a": clock.candidate("a", 0.008, 0.002, 0.9, 0.001),  # a cold start, and a disturbance
        "b": clock.candidate("b", 0.002),
    }
    seconds = time_in_turn(candidates, clock)
    assert seconds == {"a": pytest.approx(0.001), "b": pytest.approx(0.002)}
    assert "".join(clock.order) == "ab" * 8


@pytest.mark.parametrize(
    ("seconds", "rounds"), [(0.0, 7), (0.001, 7), (0.012, 4), (0.03, 1), (4.0, 1)]
)
def test_what_is_slow_runs_less_often(seconds, rounds):
    clock = StepTime()
    time_in_turn({name: clock.candidate(name, seconds) for name in "ab"}, clock)
    assert clock.order.count("a") == clock.order.count("b") == 1 + rounds


def test_noise_does_not_win():
    assert winner({"dense": 0.98, "padded": 1.0}, "padded") == "padded"
    assert winner({"dense": 0.96, "padded": 1.0}, "padded") == "dense"
    assert winner({"dense": 1.0, "padded": 1.0, "shifted": 0.5}, "dense") == "shifted"
    # A third one that is no more than noise ahead of the fastest still wins over the usual one.
    assert winner({"dense": 1.0, "padded": 0.5, "shifted": 0.499}, "dense") == "shifted"


# Who takes part.


@pytest.mark.parametrize("variant", ["avx512", "avx2", "plain", "something"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_channels_have_a_smaller_product(monkeypatch, variant, product):
    monkeypatch.setattr(native, "variant", lambda: variant)
    assert candidates(layer_case(CUTS["out"]), product) == ("dense", "channels")
    assert candidates(layer_case(CUTS["in"], active=3), product) == ("dense", "channels")


@pytest.mark.parametrize(
    ("variant", "width", "shifted"),
    [
        # backward_values alone needs rows of whole vectors; see native/scratch.cpp.
        ("avx512bf16", 8, (False, False, False)),
        ("avx512", 16, (True, True, True)),
        ("avx512", 8, (False, False, False)),
        ("avx512", 20, (True, True, False)),
        ("avx2", 8, (True, True, True)),
        ("avx2", 12, (True, True, False)),
        ("plain", 4, (True, True, True)),
        ("plain", 3, (False, False, False)),
    ],
)
def test_shifted_takes_part_where_it_is_something_else(monkeypatch, variant, width, shifted):
    monkeypatch.setattr(native, "variant", lambda: variant)
    layer = layer_case(size=(2, 4, width, width))
    for product, both in zip(PRODUCTS, shifted, strict=True):
        expected = ("dense", "padded", "shifted") if both else ("dense", "padded")
        assert candidates(layer, product) == expected


@pytest.mark.parametrize("product", PRODUCTS)
def test_strides_and_single_columns_know_one_arrangement(monkeypatch, product):
    monkeypatch.setattr(native, "variant", lambda: "plain")
    strided = layer_case(size=(2, 4, 32, 32), stride=2)
    column = layer_case(shape=(8, 4, 3, 1), size=(2, 4, 32, 32))
    linear = layer_case(shape=(8, 4), size=(2, 4))
    for layer in (strided, column, linear):
        assert candidates(layer, product) == ("dense", "padded")


def test_without_compiled_kernels_there_is_the_dense_weight(monkeypatch):
    monkeypatch.setattr(native, "variant", lambda: None)
    assert candidates(layer_case(), "forward") == ("dense",)


# A layer.


@needs_native
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 4)])
def test_every_implementation_runs(cut, shape):
    if cut == "kernels" and len(shape) == 2:
        pytest.skip("the pattern scheme is of 3x3 kernels")
    size = (2, 4, 16, 16) if len(shape) == 4 else (2, 4)
    layer = layer_case(CUTS[cut], active=3, shape=shape, size=size)
    times = {"dense": 3.0, "channels": 2.0, "padded": 1.0, "shifted": 0.5}
    found = tune_layer(layer, generator(), fixed_times(times))
    for product, name in zip(PRODUCTS, found.choice, strict=True):
        measured = found.milliseconds[product]
        assert set(measured) == set(candidates(layer, product))
        assert name == min(measured, key=measured.get)
        assert measured["dense"] == 3000.0


@needs_native
def test_products_are_chosen_one_by_one():
    turns = iter([{"dense": 1, "padded": 2}, {"dense": 2, "padded": 1}, {"dense": 1, "padded": 1}])
    layer = layer_case(size=(2, 4, 2, 2))
    assert rule(layer.weight) == PADDED
    found = tune_layer(layer, generator(), lambda candidates: next(turns))
    assert found.choice == Choice("dense", "padded", "padded")


@needs_native
def test_nothing_is_drawn_from_the_global_generator_and_nothing_needs_gradients():
    layer = layer_case()
    layer.values.requires_grad_()
    before = torch.random.get_rng_state()
    seen = []
    tune_layer(layer, generator(), fixed_times(dict.fromkeys(("dense", "padded", "shifted"), 1.0)))
    tune_layer(layer, generator(), lambda runs: [seen.append(r()) for r in runs.values()] and ONES)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert layer.values.grad is None
    assert not any(result.requires_grad for result in seen)


ONES = dict.fromkeys(("dense", "padded", "shifted"), 1.0)


@needs_native
def test_real_times_are_finite():
    found = tune_layer(layer_case(), generator())
    assert all(0 < ms < 60_000 for times in found.milliseconds.values() for ms in times.values())


# Choices that a layer holds.


def chosen(layer, choices=None):
    return choose(layer.weight, (layer.size[2], layer.size[3]), layer.geometry, choices)


def test_a_named_case_runs_what_is_named_and_all_others_what_the_rule_says():
    layer, other = layer_case(), layer_case(size=(2, 4, 8, 8))
    mixed = Choice("dense", "dense", "dense")
    choices = Choices({layer.case: mixed})
    assert chosen(layer, choices) == mixed
    assert chosen(other, choices) == rule(other.weight)
    assert chosen(layer, Choices()) == chosen(layer) == rule(layer.weight)


@pytest.mark.parametrize("cut", CUTS)
def test_dense_everywhere(cut):
    layer = layer_case(CUTS[cut], active=1)
    assert chosen(layer, Choices({layer.case: PADDED}, dense=True)) == EVERYTHING_DENSE


def test_a_choice_that_cannot_run_here_is_left_to_the_rule(monkeypatch):
    layer, small = layer_case(), layer_case(size=(2, 4, 8, 8))
    monkeypatch.setattr(native, "available", lambda: False)
    choices = Choices({layer.case: Choice("dense", "shifted", "dense"), small.case: CHANNELWISE})
    assert chosen(small, choices) == CHANNELWISE
    assert chosen(layer, choices) == EVERYTHING_DENSE  # the rule's without compiled kernels


CHANNELWISE = Choice("channels", "channels", "channels")


def test_the_case_is_that_of_the_layer():
    layer = layer_case(Strips(2), active=9)
    case = layer.case
    assert case == case_of(layer.weight, (16, 16), layer.geometry)
    assert (case.storage, case.shape, case.size) == ("strips:2", (8, 4, 3, 3), (16, 16))
    assert layer.out_size == (2, 8, 16, 16)
    linear = layer_case(shape=(8, 4), size=(5, 4))
    assert (linear.case.shape, linear.case.size) == ((8, 4, 1, 1), (1, 1))
    assert linear.out_size == (5, 8)
