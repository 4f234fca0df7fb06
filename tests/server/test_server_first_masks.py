"""First masks by scores of the dense model: which weights they choose, and who gives scores."""

import numpy as np
import pytest
import torch
from server_parts import SCHEMES, random_masks, spec_for
from torch import nn

from mest_fed.client.capability import Capability
from mest_fed.client.scoring import score_weights
from mest_fed.config import from_table
from mest_fed.data import Batches
from mest_fed.errors import BudgetError
from mest_fed.nn import read_state
from mest_fed.rng import numpy_generator
from mest_fed.sparsity import select_best
from mest_fed.task import Task
from mest_fed.task_scores import dense_task, salient_masks, scores_spec, scoring_plan
from mest_fed.training.saliency import saliency
from mest_fed.wire import check_masks, decode, encode

BUDGET = 10**9


def task_of(**sparsity):
    table = {
        "model": {"width": 0.25},
        "sparsity": {"method": "snip", "density": 0.2, "scheme": "unstructured"} | sparsity,
        "training": {"batch_size": 16, "device": "cpu"},
        "fleet": {"devices": 6, "mix": "rpi-4:1"},
    }
    return Task(from_table(table, "test"))


def scores_of(task, partition=2):
    plan = task.plan(BUDGET, "test")
    who = Capability(partition, "rpi-4", BUDGET, plan)
    return score_weights(task, read_state(dense_task(task).build_model()), who)


def random_scores(spec, seed=0):
    draw = np.random.default_rng(seed)
    return {it: draw.random(o.num_weights, np.float32) for it, o in spec.layouts.items()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_best_granules_are_active_as_many_as_asked(scheme):
    spec = spec_for(scheme)
    counts = {group: len(slots) for group, slots in random_masks(spec, 0.3, 1).items()}
    masks = salient_masks(random_scores(spec), spec, counts)
    check_masks(masks, spec)
    assert {group: len(slots) for group, slots in masks.items()} == counts


@pytest.mark.parametrize("scheme", ["unstructured", "block"])
def test_a_granule_s_score_is_the_sum_of_its_weights(scheme):
    spec, scores = spec_for(scheme), random_scores(spec_for(scheme))
    for name, slots in salient_masks(scores, spec, dict.fromkeys(spec.groups, 5)).items():
        layout = spec.layouts[name]
        padded = np.append(scores[name], 0)
        sums = padded[layout.positions(np.arange(layout.num_slots, dtype=np.int32))].sum(axis=1)
        assert slots.tolist() == select_best(sums, 5).tolist()


def test_scores_are_weight_times_gradient_of_one_batch():
    task = task_of()
    scores, count, work = scores_of(task)
    net = dense_task(task).build_model()
    examples, _ = task.examples(2)
    generator = numpy_generator(task.config.run.seed, 0, 2, "scores")
    batch = next(iter(Batches(task.data.train, examples, 16, generator=generator)))
    torch.nn.functional.cross_entropy(net(batch.inputs), batch.targets).backward()
    assert count == len(batch.targets) == 16
    assert work.dense_flops > 0
    assert scores.dense.keys() == task.spec.layouts.keys()
    for name, values in scores.dense.items():
        weight = net.get_submodule(name).weight
        wanted = (weight * weight.grad).abs().reshape(-1).detach().numpy()
        np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-8)


def test_scores_travel_and_are_the_same_again():
    task = task_of()
    first, second = scores_of(task)[0], scores_of(task)[0]
    spec = scores_spec(task.spec)
    payload, _ = encode(first, spec)
    came = decode(payload, spec)
    for name, values in second.dense.items():
        np.testing.assert_array_equal(came.dense[name], values)


def test_the_model_has_the_initial_weights_of_the_chosen_ones():
    task = task_of()
    dense = read_state(dense_task(task).build_model())
    counts = {group: len(it) for group, it in read_state(task.build_model()).masks.items()}
    masks = salient_masks(scores_of(task)[0].dense, task.spec, counts)
    state = read_state(task.build_model(masks))
    for name, layout in task.spec.layouts.items():
        np.testing.assert_array_equal(state.masks[name], masks[name])
        wanted = dense.dense[f"{name}.weight"].reshape(layout.shape)
        np.testing.assert_array_equal(state.values[name], layout.gather(wanted, masks[name]))
    assert any((state.masks[it] != read_state(task.build_model()).masks[it]).any() for it in counts)


def test_a_budget_below_a_dense_pass_gives_no_scores():
    task = task_of()
    plan = scoring_plan(task, BUDGET)
    assert plan.density == 1
    assert plan.footprint.total <= BUDGET
    with pytest.raises(BudgetError, match="scores of dense weights"):
        scoring_plan(task, 1_000_000)


def test_packed_projections_of_an_attention_are_scored_as_layers():
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    net(x, x, x)[0].square().sum().backward()
    wanted = (net.in_proj_weight * net.in_proj_weight.grad).abs().reshape(-1)
    assert torch.equal(saliency(net, "in_proj"), wanted)
    assert saliency(net, "out_proj").shape == (64,)
