"""What trainers count of their work: by programs and by torch, of what is active."""

import numpy as np
import pytest
import torch

from mest_fed.data import Batch
from mest_fed.devices import Work, torch_step_work, training_work
from mest_fed.nn import build_model, sparsify
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.rng import torch_generator
from mest_fed.training import CompiledTrainer, LocalTrainer
from mest_fed.training.programs import Programs

IMAGE, SETTINGS = (3, 16, 16), OptimizerSettings(0.01, momentum=0.9)


def model_of(scheme):
    options = {"norm": "group", "generator": torch_generator(0, "work")}
    return sparsify(build_model("resnet8", IMAGE, 10, **options), scheme, 0.1)


def batch(size):
    return Batch(torch.zeros(size, *IMAGE), torch.zeros(size, dtype=torch.int64), np.arange(size))


def compiled(model, micro_batch, room=1.0):
    return CompiledTrainer(
        model,
        SETTINGS.build(model),
        micro_batch=micro_batch,
        programs=Programs(model),
        settings=SETTINGS,
        rng=np.random.default_rng(0),
        room=room,
    )


@pytest.mark.parametrize("scheme", ["block", "block:8", "pattern", "unstructured"])
def test_a_program_counts_the_operations_of_active_weights(scheme):
    model = model_of(scheme)
    for room in (1.0, 1.5):  # for more weights than there are
        trainer = compiled(model, 8, room)
        trainer.fit([batch(8)])
        counted = training_work(model, IMAGE) * 8
        # Operators that take as long as their bytes are counted by those.
        assert 0.7 < trainer.work.sparse_flops / counted.sparse_flops <= 1.01
        assert trainer.work.moved_bytes > 0


def test_torch_counts_examples_micro_batches_and_steps():
    model = model_of("block")
    step = torch_step_work(model, IMAGE)
    trainer = LocalTrainer(model, SETTINGS.build(model), micro_batch=4, costs=lambda: step)
    trainer.fit([batch(8), batch(6)])
    assert trainer.work == step.of_batch(8, 4) + step.of_batch(6, 4)
    assert step.of_batch(6, 4) == step.total(examples=6, groups=2, steps=1)


def test_small_groups_cost_more_than_large_ones():
    model = model_of("unstructured")
    calls = {}
    for micro_batch in (1, 8):
        trainer = compiled(model, micro_batch)
        trainer.fit([batch(8)])
        calls[micro_batch] = trainer.work.core_seconds
    assert calls[1] > calls[8]


def test_nothing_is_counted_where_nobody_asks():
    model = model_of("block")
    trainer = LocalTrainer(model, SETTINGS.build(model), micro_batch=4)
    trainer.fit([batch(4)])
    assert trainer.work == Work()
