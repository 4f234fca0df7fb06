"""Whole rounds of one client, in process: what it sends, what it keeps, that it repeats."""

import numpy as np
import pytest
from client_parts import context_of, instruction, small_config, start_of, task_of

from mest_fed.client.app import app
from mest_fed.client.local_round import ClientState
from mest_fed.errors import WireError
from mest_fed.kernels import torch_threads
from mest_fed.wire import UnknownMaskError, decode, mask_hash
from mest_fed.wire.records import from_record

CONFIG = small_config()


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


def sent_back(reply, config, start):
    """Decode a client's update as the server does."""
    known = {mask_hash(start.masks): start.masks}
    return decode(from_record(reply.content), task_of(config).spec, known=known, reference=start)


def all_values(state):
    parts = [*state.values.values(), *state.dense.values()]
    return np.concatenate([part.ravel() for part in parts])


def test_a_round_of_training():
    start, context = start_of(CONFIG), context_of(CONFIG, 1)
    reply = app(instruction(CONFIG, start), context)
    examples = len(task_of(CONFIG).examples(1)[0])
    metrics = reply.content["metrics"]
    assert metrics["num-examples"] == metrics["presented"] == examples
    # What Flower's strategies and mods expect: one record of each kind.
    assert list(reply.content) == ["arrays", "mest", "metrics"]
    assert 0 <= metrics["correct"] <= examples
    assert metrics["loss-sum"] > 0
    assert metrics["flops-sparse"] > 0
    assert metrics["flops-dense"] > 0
    update = sent_back(reply, CONFIG, start)
    assert metrics["density"] == pytest.approx(update.density(task_of(CONFIG).spec))
    assert mask_hash(update.masks) == mask_hash(start.masks)
    changed = all_values(update) != all_values(start)
    assert changed.mean() > 0.9


def test_all_epochs_count():
    config = small_config(training={"local_epochs": 3})
    reply = app(instruction(config, start_of(config)), context_of(config))
    examples = len(task_of(config).examples(0)[0])
    assert reply.content["metrics"]["num-examples"] == examples
    assert reply.content["metrics"]["presented"] == 3 * examples


def test_the_same_seed_gives_the_same_bits():
    start = start_of(CONFIG)
    first = app(instruction(CONFIG, start), context_of(CONFIG))
    # What this process trained in between is of no account.
    app(instruction(CONFIG, start, number=2), context_of(CONFIG, 3))
    second = app(instruction(CONFIG, start), context_of(CONFIG))
    assert first.content == second.content


COUNTS = """
import torch
from torch import nn


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += self.training
        return x / (1 + self.calls)


def build(input_shape, num_classes):
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Counts()]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, num_classes))
"""


def test_counters_of_a_model_are_not_those_of_the_client_before(tmp_path):
    (tmp_path / "counts.py").write_text(COUNTS, encoding="utf-8")
    config = small_config(model={"name": f"{tmp_path}/counts.py:build", "width": 1.0})
    start = start_of(config)
    first, _, again = (
        app(instruction(config, start), context_of(config, partition)) for partition in (0, 3, 0)
    )
    assert first.content == again.content


@pytest.mark.parametrize("change", ["seed", "round", "partition"])
def test_other_paths_give_other_bits(change):
    start = start_of(CONFIG)
    config = small_config(run={"rounds": 4, "seed": 4}) if change == "seed" else CONFIG
    number, partition = 2 if change == "round" else 1, 1 if change == "partition" else 0
    first = app(instruction(CONFIG, start), context_of(CONFIG))
    second = app(instruction(config, start, number=number), context_of(config, partition))
    one, other = sent_back(first, CONFIG, start), sent_back(second, config, start)
    assert not np.array_equal(all_values(one), all_values(other))


def test_the_micro_batch_changes_nothing_but_rounding():
    start = start_of(CONFIG)
    whole = task_of(CONFIG).plan(10**9, "test")
    updates = []
    for budget in (whole.footprint.total, whole.footprint.total - 1):
        reply = app(instruction(CONFIG, start), context_of(CONFIG, budget=budget))
        updates.append(all_values(sent_back(reply, CONFIG, start)))
    np.testing.assert_allclose(*updates, rtol=1e-3, atol=1e-4)


def test_the_mask_is_kept_and_need_not_come_again():
    start, context = start_of(CONFIG), context_of(CONFIG)
    with pytest.raises(UnknownMaskError):
        decode(
            from_record(instruction(CONFIG, start, known=start.masks).content), task_of(CONFIG).spec
        )
    app(instruction(CONFIG, start), context)
    app(instruction(CONFIG, start, known=start.masks, number=2), context)
    assert mask_hash(ClientState(context).masks) == mask_hash(start.masks)


def test_a_mask_that_it_does_not_hold_is_an_error_and_leaves_its_state():
    start, context = start_of(CONFIG), context_of(CONFIG)
    with pytest.raises(WireError, match=r"the server's message was rejected: masks .* not known"):
        app(instruction(CONFIG, start, known=start.masks), context)
    assert set(context.state) == {"mest.plan"}


def test_it_mutates_when_asked():
    start = start_of(CONFIG)
    reply = app(instruction(CONFIG, start, number=2, mutate=True), context_of(CONFIG))
    update = sent_back(reply, CONFIG, start)
    for group, slots in start.masks.items():
        assert len(update.masks[group]) == len(slots)
        replaced = len(np.setdiff1d(slots, update.masks[group]))
        assert replaced == pytest.approx(0.2 * len(slots), abs=1)


def test_all_clients_grow_the_same():
    config = small_config(sparsity={"method": "set"})
    start = start_of(config)
    grown = []
    for partition in (0, 1):
        reply = app(
            instruction(config, start, number=2, mutate=True), context_of(config, partition)
        )
        masks = sent_back(reply, config, start).masks
        grown.append({g: set(np.setdiff1d(masks[g], slots)) for g, slots in start.masks.items()})
    # What grows differs only where a client had just dropped the candidate.
    for group in start.masks:
        one, other = grown[0][group], grown[1][group]
        assert len(one & other) >= 0.8 * len(one)


def test_what_the_server_knows_is_what_it_sent_not_what_was_grown():
    start, context = start_of(CONFIG), context_of(CONFIG)
    app(instruction(CONFIG, start, number=2, mutate=True), context)
    assert mask_hash(ClientState(context).masks) == mask_hash(start.masks)


def test_evaluation():
    start, context = start_of(CONFIG), context_of(CONFIG, 2)
    reply = app(instruction(CONFIG, start, "evaluate"), context)
    held = len(task_of(CONFIG).examples(2)[1])
    metrics = reply.content["metrics"]
    assert metrics["num-examples"] == held > 0
    assert 0 <= metrics["correct"] <= held
    assert "arrays" not in reply.content
    again = app(instruction(CONFIG, start, "evaluate", known=start.masks), context)
    assert again.content == reply.content


FORGETTING = small_config(
    run={"rounds": 4, "seed": 3},
    training={"local_epochs": 2},
    forgetting={"fraction": 0.3, "start": 0.5},
)


def test_forgetting_lasts_across_rounds_and_leaves_examples_out():
    start, context = start_of(FORGETTING), context_of(FORGETTING)
    examples = len(task_of(FORGETTING).examples(0)[0])
    presented, state = [], start
    for number in (1, 2, 3, 4):
        reply = app(instruction(FORGETTING, state, number=number), context)
        state = sent_back(reply, FORGETTING, state)
        presented.append(reply.content["metrics"]["presented"])
        kept = ClientState(context).forgetting(examples)
        assert kept.learned.any()
        assert kept.removed.any() == (number > 2)
    gone = int(kept.removed.sum())
    assert 0 < gone <= 0.3 * examples
    # rounds 3 and 4 begin at half of the progress and later
    assert presented == [2 * examples] * 2 + [2 * (examples - gone)] * 2
    assert reply.content["metrics"]["num-examples"] == examples


def test_what_was_forgotten_is_never_sent():
    with_counts, without = context_of(FORGETTING), context_of(FORGETTING)
    start = start_of(FORGETTING)
    app(instruction(FORGETTING, start), with_counts)
    assert len(with_counts.state) > 1
    reply = app(instruction(FORGETTING, start, number=2), with_counts)
    other = app(instruction(FORGETTING, start, number=2), without)
    # The same bits with and without counts of former rounds: nothing of them is in the reply.
    assert reply.content == other.content
    assert not set(reply.content) & set(with_counts.state)


INT8 = small_config(wire={"upload": "int8"})


def test_8_bit_uploads_keep_what_they_leave_out():
    start, context = start_of(INT8), context_of(INT8)
    exact = sent_back(app(instruction(CONFIG, start), context_of(CONFIG)), CONFIG, start)
    update = sent_back(app(instruction(INT8, start), context), INT8, start)
    residual = ClientState(context).residual
    assert any(values.any() for values in residual.values.values())
    for layer, values in exact.values.items():
        owed = values - update.values[layer]
        np.testing.assert_allclose(residual.values[layer], owed, atol=1e-6)


def test_the_next_8_bit_upload_pays_what_is_owed():
    start, context = start_of(INT8), context_of(INT8)
    app(instruction(INT8, start), context)
    owed = ClientState(context).residual
    second = app(instruction(INT8, start, known=start.masks, number=2), context)
    exact = sent_back(app(instruction(CONFIG, start, number=2), context_of(CONFIG)), CONFIG, start)
    update, left = sent_back(second, INT8, start), ClientState(context).residual
    for layer, values in exact.values.items():
        paid = update.values[layer] + left.values[layer]
        np.testing.assert_allclose(paid, values + owed.values[layer], atol=1e-5)


def test_the_residual_is_not_sent():
    context = context_of(INT8)
    reply = app(instruction(INT8, start_of(INT8)), context)
    assert reply.content["arrays"]["values"].dtype == "int8"
    assert not set(reply.content) & set(context.state)
