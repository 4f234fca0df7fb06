"""One batch stands in memory at a time: it is gone when the next one is made."""

import numpy as np
import pytest
import torch
from training_cases import model

from mest_fed.data import Batches, load_dataset
from mest_fed.data.minibatches import Examples, Minibatches, Rows
from mest_fed.errors import InputError
from mest_fed.runtime import native_table
from mest_fed.runtime.batches import GROUPS_AT_ONCE
from mest_fed.training import (
    CLASSIFICATION,
    CompiledTrainer,
    LocalTrainer,
    OptimizerSettings,
    evaluate,
)
from mest_fed.training.programs import Programs

compiled_alone = pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")
#: The last batch has another size, which another program computes.
EXAMPLES, BATCH = 44, 16


def batches(augmentation="none"):
    data, draws = load_dataset("digits").train, np.random.default_rng(1)
    return Batches(data, np.arange(EXAMPLES), BATCH, generator=draws, augmentation=augmentation)


def net(scheme="block"):
    return model(scheme)


@pytest.mark.parametrize("micro_batch", [BATCH, 3])
@pytest.mark.parametrize("engine", ["torch", pytest.param("compiled", marks=compiled_alone)])
def test_in_training(engine, micro_batch, stands):
    trained, settings = net(), OptimizerSettings(0.05)
    optimizer = settings.build(trained)
    if engine == "torch":
        trainer = LocalTrainer(trained, optimizer, micro_batch=micro_batch)
    else:
        programs = Programs(trained)
        more = {"programs": programs, "settings": settings, "rng": np.random.default_rng(0)}
        trainer = CompiledTrainer(trained, optimizer, micro_batch=micro_batch, **more)
    trainer.fit(batches().in_parts())
    assert stands == [False, False]


@pytest.mark.parametrize("engine", ["torch", pytest.param("compiled", marks=compiled_alone)])
def test_in_evaluation(engine, stands):
    trained = net()
    forward = None if engine == "torch" else Programs(trained).forward
    evaluate(trained, batches(), forward=forward)
    assert stands == [False, False]


@compiled_alone
def test_a_program_does_not_run_on_a_batch_that_was_unbound():
    trained = net(None)
    first = next(iter(batches()))
    step = Programs(trained).step(
        CLASSIFICATION,
        OptimizerSettings(0.05),
        first,
        BATCH,
    )
    step.train(first.inputs, first.targets, 0.05)
    runtime = step.step.runtime
    with pytest.raises(
        InputError, match="input, targets: unbound; allowed: once an array is bound"
    ):
        runtime.groups(1)
    with pytest.raises(InputError, match="input: unbound"):
        runtime.memory("input")


def test_floats_are_normalised_where_they_are_and_what_a_device_holds_stays():
    held = np.arange(12, dtype=np.float32).reshape(4, 3)
    examples = Examples(held.copy(), np.arange(4), (1.0, 2.0, 3.0), (2.0, 2.0, 2.0))
    gathered = held[[1, 2]]
    result = examples.normalised(gathered, spent=True)
    assert result is gathered
    assert result.tolist() == [[1.0, 1.0, 1.0], [2.5, 2.5, 2.5]]
    ((inputs, _, _),) = Minibatches(examples, np.array([1, 2]), 2).epoch()
    assert inputs.make(slice(2)).tolist() == result.tolist()
    assert examples.inputs.tolist() == held.tolist()
    assert examples.normalised(examples.inputs) is not examples.inputs
    assert examples.inputs.tolist() == held.tolist()


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_parts_are_those_of_the_whole_batch(augmentation):
    whole, in_parts = list(batches(augmentation)), list(batches(augmentation).in_parts())
    for one, other in zip(whole, in_parts, strict=True):
        assert other.example == one.example == ((1, 8, 8), torch.float32)
        parts = [other.part(slice(first, first + 3)) for first in range(0, len(one.targets), 3)]
        assert torch.equal(torch.cat(parts), one.inputs)
        assert torch.equal(other.part(), one.inputs)
        assert torch.equal(other.targets, one.targets)
        assert other.examples.tolist() == one.examples.tolist()


@compiled_alone
def test_a_program_has_parts_of_a_few_groups_made(monkeypatch):
    """Groups of one of 16 examples: four are made at a time."""
    sizes, make = [], Rows.make

    def noted(self, part):
        rows = make(self, part)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(Rows, "make", noted)
    trained, settings = net(), OptimizerSettings(0.05)
    more = {"programs": Programs(trained), "settings": settings, "rng": np.random.default_rng(0)}
    trainer = CompiledTrainer(trained, settings.build(trained), micro_batch=1, **more)
    trainer.fit(batches().in_parts())
    assert max(sizes) == GROUPS_AT_ONCE
    assert sum(sizes) == EXAMPLES
