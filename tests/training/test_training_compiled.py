"""Training by compiled programs against torch's, from one state and on the same batches."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_cases import batches, generator, model

from mest_fed.data import Batch
from mest_fed.errors import InputError
from mest_fed.memory import MemoryOptions
from mest_fed.nn import mask_groups
from mest_fed.nn.identity import plain_tensors
from mest_fed.runtime import native_table
from mest_fed.sparsity import MestEM, MestEMS, RigL, Set
from mest_fed.training import (
    CLASSIFICATION,
    CompiledTrainer,
    ForgettingState,
    LocalMutation,
    LocalTrainer,
    OptimizerSettings,
    RoundMutation,
    evaluate,
    judge,
)
from mest_fed.training.model_step import ModelStep
from mest_fed.training.objective import Objective
from mest_fed.training.programs import MOST_PROGRAMS, Programs, check_step
from mest_fed.training.tasks import MultiLabel, NextToken, Regression

sys.path.append(str(Path(__file__).parents[1] / "runtime"))
from step_cases import BATCH, STEPS, TOKENS, dtype_of, inputs_of, model_of

pytestmark = pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")

SGD = OptimizerSettings(0.02, 0.9, 1e-3)
ADAM = OptimizerSettings(1e-3, name="adam", weight_decay=1e-3)
#: Of the largest change of a parameter: rounding of float32, carried through a few steps.
BOUND = 1e-3
#: Models whose many small planes magnify rounding: torch's own three steps of mobilenetv2 differ
#: from those in float64 by 5e-2, ours by 3e-2.
DEEP = {"resnet50": 5e-2, "mobilenetv2": 1e-1}


def train(net, data, *, compiled, settings=SGD, method=None, seed=0, **how):
    """Train a copy of a model for a round; return it, what was counted, and the trainer."""
    net = copy.deepcopy(net)
    optimizer = settings.build(net)
    mutation = None
    if method is not None:
        what = RoundMutation(method, progress=0.1, seed=0, round=3)
        mutation = LocalMutation(net, optimizer, what, len(data))
    how = {"micro_batch": 64, **how}
    if compiled:
        how |= {"programs": Programs(net), "settings": settings}
        trainer = CompiledTrainer(net, optimizer, **how, rng=np.random.default_rng(seed))
    else:
        trainer = LocalTrainer(net, optimizer, **how)
    return net, trainer.fit(data, mutation), trainer


def steps_of(trainer):
    """Return the compiled steps that a trainer has had; None stands for torch."""
    return list(trainer.programs._kept.values())


def assert_alike(net, other, before, bound=BOUND):
    """Compare two trained models: masks and counters, and all else but for rounding."""
    assert [g.mask.slots.tolist() for g in mask_groups(net)] == [
        g.mask.slots.tolist() for g in mask_groups(other)
    ]
    mine, theirs, was = (it.state_dict() for it in (net, other, before))
    assert mine.keys() == theirs.keys()

    def distance(one, two):
        return float((one - two).abs().max())

    with plain_tensors():  # of unlike masks too
        dense = [name for name in was if "slots" not in name and "values" not in name]
        moved = max(distance(theirs[name], was[name]) for name in dense)
        assert moved > 0
        for name, array in mine.items():
            exact = bound * moved if array.is_floating_point() else 0
            assert distance(array, theirs[name]) <= exact, name


def data_of(shape, count, sizes=(BATCH,), target_shape=()):
    """Return batches for a model of the runtime's cases; their sizes take turns."""
    found = []
    for number in range(count):
        given, rows = inputs_of(shape, target_shape, number), sizes[number % len(sizes)]
        inputs = torch.tensor(given["input"]).to(dtype_of(shape))[:rows]
        targets = torch.tensor(given["targets"])[:rows]
        found.append(Batch(inputs, targets, np.arange(rows)))
    return found


#: Left to long runs: tests/runtime has their steps too.
LONG = ("resnet50", "mobilenetv2", "resnet32")


@pytest.mark.parametrize(
    "name", [pytest.param(it, marks=[pytest.mark.soak] * (it in LONG)) for it in STEPS]
)
def test_every_model_with_a_program_trains_as_by_torch(name):
    shape, *rest = STEPS[name]
    net = model_of(name, shape, *rest)
    for data in (data_of(shape, 1), data_of(shape, 3, (4, 3))):
        mine, counted, trainer = train(net, data, compiled=True)
        theirs, expected, _ = train(net, data, compiled=False)
        assert None not in steps_of(trainer)
        assert_alike(mine, theirs, net, DEEP.get(name, BOUND))
        assert counted.loss == pytest.approx(expected.loss, rel=1e-4)
        assert counted.sums == expected.sums
        assert (counted.examples, counted.count) == (expected.examples, expected.count)


@pytest.mark.parametrize(
    "settings", [SGD, OptimizerSettings(0.05, 0.0), ADAM], ids=["sgd", "no momentum", "adam"]
)
@pytest.mark.parametrize(
    "method", [None, MestEM(), MestEMS(), Set(), RigL()], ids=lambda it: type(it).__name__
)
def test_mutation_goes_on_from_the_memory_of_the_program(method, settings):
    net, data = model("block", norm="batch"), batches(4)
    mine, counted, trainer = train(net, data, compiled=True, settings=settings, method=method)
    theirs, expected, other = train(net, data, compiled=False, settings=settings, method=method)
    assert any(it is not None for it in steps_of(trainer))
    assert_alike(mine, theirs, net, 2e-2 if settings is ADAM else BOUND)
    assert counted.loss == pytest.approx(expected.loss, rel=1e-5)
    assert counted.sums == expected.sums
    ours, its = trainer.optimizer.state, other.optimizer.state
    for one, two in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert ours[one].keys() == its[two].keys()
        for key, state in its[two].items():
            torch.testing.assert_close(ours[one][key], state, rtol=1e-3, atol=1e-5, msg=key)


def test_forgetting_is_counted_alike():
    net, data = model("unstructured"), batches(3) * 4
    states = [ForgettingState.fresh(24) for _ in range(2)]
    for state, compiled in zip(states, (True, False), strict=True):
        train(net, data, compiled=compiled, forgetting=state)
    np.testing.assert_array_equal(states[0].codes, states[1].codes)
    assert states[0].codes.any()


def test_what_is_frozen_stays_and_statistics_move_on():
    net, data, options = model(norm="batch"), batches(3), MemoryOptions(frozen=2)
    mine, _, _ = train(net, data, compiled=True, memory=options)
    theirs, _, _ = train(net, data, compiled=False, memory=options)
    assert_alike(mine, theirs, net)
    moved = {
        name
        for (name, one), two in zip(mine.named_parameters(), net.parameters(), strict=True)
        if not torch.equal(one, two)
    }
    assert moved
    assert moved < {name for name, _ in net.named_parameters()}
    assert all(it.requires_grad for it in mine.parameters())


class Dropping(nn.Sequential):
    """A linear classifier that drops inputs."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))


def test_dropout_is_drawn_from_the_generator_of_the_round():
    torch.manual_seed(0)
    net, data = Dropping(), batches(2)
    runs = [train(net, data, compiled=True, seed=seed)[0][2].weight for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_programs_follow_their_model_to_another_state():
    net, data = model("block"), batches(2)
    programs, rng = Programs(net), np.random.default_rng(0)
    start, results = copy.deepcopy(net.state_dict()), []
    for _ in range(2):
        net.load_state_dict(start)
        optimizer = SGD.build(net)
        trainer = CompiledTrainer(
            net, optimizer, micro_batch=8, programs=programs, settings=SGD, rng=rng
        )
        trainer.fit(data)
        results.append(copy.deepcopy(net.state_dict()))
        del optimizer, trainer
    for name, array in results[0].items():
        assert torch.equal(array, results[1][name]), name
    assert len(programs._kept) == 1


def test_the_programs_that_are_kept_are_bounded():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    programs, (batch,) = Programs(net), batches(1)
    steps = [programs.step(CLASSIFICATION, SGD, batch, size) for size in range(1, 20)]
    assert len(programs._kept) == MOST_PROGRAMS < len(steps)
    assert programs.step(CLASSIFICATION, SGD, batch, 19) is steps[-1]
    again = replace(SGD, learning_rate=0.5)
    assert programs.step(CLASSIFICATION, again, batch, 18) is steps[-2]
    gradients_and_momentum = 2 * 4 * (640 + 10)
    assert all(it.bytes > gradients_and_momentum for it in steps)
    programs.keep_within(3 * steps[-1].bytes)
    programs.step(CLASSIFICATION, SGD, batch, 20)
    assert len(programs._kept) in {2, 3}
    programs.keep_within(1)
    assert programs.step(CLASSIFICATION, SGD, batch, 21) is not None
    assert len(programs._kept) == 1


def test_a_step_that_released_its_memory_trains_the_same_afterwards():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 10))
    start, results = copy.deepcopy(net.state_dict()), []
    programs = Programs(net)
    for most_bytes in (0, 1 << 30):
        programs.keep_within(most_bytes)
        for _ in range(2):
            net.load_state_dict(start)
            how = {"programs": programs, "settings": SGD, "rng": np.random.default_rng(0)}
            CompiledTrainer(net, SGD.build(net), **how, micro_batch=6).fit(batches(2, 6))
            (step,) = programs._kept.values()
            momentum = step.step.arrays["1.weight:momentum_buffer"]
            assert np.count_nonzero(momentum)
            programs.release_memory()
            # The ends of an array may share their pages with others.
            left = np.count_nonzero(momentum[1024:-1024]) / momentum.size
            assert left == 0 if most_bytes == 0 else left > 0.1
            results.append(copy.deepcopy(net.state_dict()))
    for other in results[1:]:
        for name, array in results[0].items():
            assert torch.equal(array, other[name]), name


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_bits_of_a_client_do_not_depend_on_those_before_it(norm):
    net, results = model("block", norm=norm), []
    for first in (2, 8):
        fresh = copy.deepcopy(net)
        programs, start = Programs(fresh), copy.deepcopy(net.state_dict())
        for data in (batches(1, first), [*batches(1, 7), *batches(1, 5)]):
            fresh.load_state_dict(start)
            rng, optimizer = np.random.default_rng(0), SGD.build(fresh)
            how = {"programs": programs, "settings": SGD, "rng": rng, "micro_batch": 6}
            CompiledTrainer(fresh, optimizer, **how).fit(data)
        results.append(fresh.state_dict())
    for name, array in results[0].items():
        assert torch.equal(array, results[1][name]), name


@pytest.mark.parametrize("settings", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("scheme", ["unstructured", "block:3", "pattern", "channel"])
def test_a_step_with_room_trains_the_same_at_any_count(scheme, settings):
    net, programs, counts = model(scheme), None, set()
    for progress in (0.1, 0.6, 0.95):  # the ceiling falls: 1.5, 1.25, 1
        before = copy.deepcopy(net)
        what = RoundMutation(MestEMS(), progress=progress, seed=0, round=3)
        other = copy.deepcopy(net)
        programs = programs or Programs(net)
        how = {"programs": programs, "settings": settings, "rng": np.random.default_rng(0)}
        for trained, kind, more in (
            (net, CompiledTrainer, {**how, "room": MestEMS().peak}),
            (other, LocalTrainer, {}),
        ):
            optimizer, data = settings.build(trained), batches(3)
            mutation = LocalMutation(trained, optimizer, what, len(data))
            kind(trained, optimizer, micro_batch=6, **more).fit(data, mutation)
        counts.add(mutation.bounds.ceiling)
        assert_alike(net, other, before, 2e-2 if settings is ADAM else BOUND)
        with plain_tensors():
            net.load_state_dict(other.state_dict())  # rounding must not add up
    assert counts == {1.5, 1.25, 1.0}
    assert None not in programs._kept.values()
    assert len(programs._kept) == (3 if scheme == "channel" else 1)


def test_weights_are_updated_directly_where_a_batch_is_whole(monkeypatch):
    net, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), []
    for size in (6, 6, 5):
        data += batches(1, size)
    theirs, _, _ = train(net, data, compiled=False, micro_batch=6)
    for least, batch_size, direct in ((1, 6, True), (2**21, 6, False), (1, 7, False)):
        monkeypatch.setattr("mest_fed.training.program_choice.DIRECT_BYTES", least)
        mine, _, trainer = train(net, data, compiled=True, micro_batch=6, batch_size=batch_size)
        (step,) = steps_of(trainer)
        assert ("1.weight" not in step.step.gradients) is direct
        assert_alike(mine, theirs, net)


class OfMyOwn(Objective):
    """Half the cross-entropy."""

    def losses(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none") / 2


class Waving(nn.Sequential):
    """Computes what no operator does."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return super().forward(torch.sin(x))


def hooked():
    net = model()
    net.get_submodule("stage1").register_forward_hook(lambda *_: None)
    return net


class HalfEvaluating(nn.Sequential):
    """Its dropout is off in training too."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def with_odd_weights():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net[1].weight = nn.Parameter(torch.randn(64, 10, generator=generator()).T)
    return net


class Counting(nn.Sequential):
    """Counts its calls, in a buffer or an attribute."""

    def __init__(self, attribute):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.register_buffer("count", torch.zeros(()))
        self.attribute, self.calls = attribute, 0

    def forward(self, x):
        if self.attribute:
            self.calls += 1
        else:
            self.count += 1
        return super().forward(x)


class CountingWaving(Counting):
    """Refused for its operator, after it has counted."""

    def forward(self, x):
        return super().forward(torch.sin(x))


NO_PROGRAM = {
    "both": (lambda: CountingWaving(False), SGD, {}, "function 'sin' has no operator"),
    "buffer": (lambda: Counting(False), SGD, {}, "its code changes buffers or attributes"),
    "attribute": (lambda: Counting(True), SGD, {}, "its code changes buffers or attributes"),
    "task": (model, SGD, {"objective": OfMyOwn()}, "task.name = 'OfMyOwn'"),
    "optimizer": (
        model,
        OptimizerSettings(name="torch.optim:RMSprop"),
        {},
        "training.optimizer = 'torch.optim:RMSprop'",
    ),
    "operator": (Waving, SGD, {}, "function 'sin' has no operator"),
    "hook": (hooked, SGD, {}, "module 'stage1' has a hook"),
    "mode": (
        lambda: HalfEvaluating(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)),
        SGD,
        {},
        "module '1' has a mode of its own",
    ),
    "strides": (with_odd_weights, SGD, {}, "'1.weight' is not contiguous"),
}


@pytest.mark.parametrize("case", NO_PROGRAM)
def test_what_has_no_program_is_trained_by_torch(case):
    make, settings, how, reason = NO_PROGRAM[case]
    net, data = make(), batches(2)
    mine, counted, trainer = train(net, data, compiled=True, settings=settings, **how)
    theirs, expected, _ = train(net, data, compiled=False, settings=settings, **how)
    assert steps_of(trainer) == [None]
    for one, two in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert counted == expected
    assert getattr(mine, "calls", 0) == getattr(theirs, "calls", 0)
    inputs = (2, 1, 8, 8), torch.float32
    with pytest.raises(InputError, match=reason):
        check_step(net, inputs, how.get("objective", trainer.objective), settings)


@pytest.mark.parametrize("scheme", ["unstructured", "block:3", "pattern", "channel"])
def test_every_scheme_mutates_alike(scheme):
    net, data = model(scheme), batches(4)
    mine, counted, trainer = train(net, data, compiled=True, method=MestEM())
    theirs, expected, _ = train(net, data, compiled=False, method=MestEM())
    assert None not in steps_of(trainer)
    assert_alike(mine, theirs, net)
    assert counted.sums == expected.sums


def test_layers_of_one_mask_may_hold_one_tensor_of_slots():
    net, sizes = model("channel"), (8, 5)
    programs, rng = Programs(net), np.random.default_rng(0)
    for size in sizes:  # the second has a rest, whose program is made of the changed model
        how = {"programs": programs, "settings": SGD, "rng": rng, "micro_batch": 4}
        CompiledTrainer(net, SGD.build(net), **how).fit(batches(1, size))
        for leader, *others in (group.layers for group in mask_groups(net)):
            for layer in others:
                layer.slots = leader.slots
    assert len(programs._kept) == 1
    assert None not in programs._kept.values()


@pytest.mark.parametrize("objective", [Regression("huber"), MultiLabel()], ids=["huber", "labels"])
def test_tasks_of_numbers_within_limits(objective):
    settings = OptimizerSettings(0.1, clip_norm=0.1, proximal=0.5)
    targets = (torch.arange(80).view(8, 10) % 3 == 0).float()
    data = [replace(it, targets=targets) for it in batches(3)]
    net = model("block")
    how = {"settings": settings, "objective": objective, "method": MestEM()}
    mine, counted, trainer = train(net, data, compiled=True, **how)
    theirs, expected, _ = train(net, data, compiled=False, **how)
    assert None not in steps_of(trainer)
    assert_alike(mine, theirs, net)
    assert counted.loss == pytest.approx(expected.loss, rel=1e-5)
    assert counted.sums == pytest.approx(expected.sums, rel=1e-5)


@pytest.mark.parametrize("ignored", [0, 2])
def test_tokens_that_do_not_count(ignored):
    net = model_of("transformer", TOKENS, {"width": 0.25}, None, TOKENS)
    data = data_of(TOKENS, 2, target_shape=TOKENS)
    for batch in data[:1]:
        batch.targets[:ignored] = -100
    mine, counted, trainer = train(net, data, compiled=True, objective=NextToken())
    theirs, expected, _ = train(net, data, compiled=False, objective=NextToken())
    assert_alike(mine, theirs, net)
    assert counted.loss == pytest.approx(expected.loss, rel=1e-5)
    assert (counted.count, counted.sums) == (expected.count, expected.sums)
    assert any(it is not None for it in steps_of(trainer))


@pytest.mark.parametrize("micro_batch", [1, 5, 8])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_micro_batches(norm, micro_batch):
    net, data = model("unstructured", norm=norm), batches(2, 12)
    mine, counted, trainer = train(net, data, compiled=True, micro_batch=micro_batch)
    theirs, expected, _ = train(net, data, compiled=False, micro_batch=micro_batch)
    assert_alike(mine, theirs, net)
    assert counted.loss == pytest.approx(expected.loss, rel=1e-5)
    (step,) = steps_of(trainer)
    assert step.step.program.examples <= micro_batch


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_examples_of_two_shapes_in_turn_are_bound_once_each(monkeypatch, micro_batch):
    bound, bind = [], ModelStep.bind
    monkeypatch.setattr(ModelStep, "bind", lambda *it: (bound.append(it[0]), bind(*it)))
    data = [
        replace(it, inputs=it.inputs[..., : 8 - 2 * (number % 2)])
        for number, it in enumerate(batches(6))
    ]
    net = model("block")
    mine, _, _ = train(net, data, compiled=True, micro_batch=micro_batch)
    theirs, _, _ = train(net, data, compiled=False, micro_batch=micro_batch)
    assert_alike(mine, theirs, net)
    assert len(bound) == len(set(map(id, bound))) == 2


def test_a_guard_lowers_the_micro_batch_between_steps():
    net, data = model(norm="batch"), batches(3, 8)
    seen = []

    def guard(trainer):
        seen.append(trainer.micro_batch)
        trainer.micro_batch = 4

    mine, _, trainer = train(net, data, compiled=True, micro_batch=8, guard=guard)
    theirs = copy.deepcopy(net)
    optimizer = SGD.build(theirs)
    for size, part in ((8, data[:1]), (4, data[1:])):
        LocalTrainer(theirs, optimizer, micro_batch=size).fit(part)
    assert_alike(mine, theirs, net)
    assert seen == [8, 4, 4]
    assert len(steps_of(trainer)) == 2


@pytest.mark.parametrize("name", [*STEPS, "no program"])
def test_evaluation_is_that_of_the_model(name):
    if name == "no program":
        net, data = Waving(), batches(1, 21)
    else:
        shape, *rest = STEPS[name]
        net = model_of(name, shape, *rest)
        parts = data_of(shape, 6)
        inputs = torch.cat([it.inputs for it in parts])[:21]  # a whole group, and a part of one
        data = [Batch(inputs, torch.cat([it.targets for it in parts])[:21], np.arange(21))]
    net(data[0].inputs)  # running statistics of something
    programs = Programs(net)
    mine, theirs = evaluate(net, data, forward=programs.forward), evaluate(net, data)
    assert (steps_of_evaluation(programs) is None) == (name == "no program")
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert mine.sums == theirs.sums
    with torch.no_grad():
        exact = net(data[0].inputs)
        torch.testing.assert_close(programs.forward(data[0].inputs), exact, rtol=1e-4, atol=1e-5)
    assert torch.equal(judge(net, data, forward=programs.forward), judge(net, data))


def steps_of_evaluation(programs):
    (found,) = programs._kept.values()
    return found
