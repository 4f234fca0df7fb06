"""What the server refuses: each wrong reply is a WireError with a reason."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from server_parts import metrics, random_masks, random_state, reply_with, spec_for
from torch import nn

from mest_fed.errors import WireError
from mest_fed.nn import model_spec, read_state
from mest_fed.server.update_validator import Counts, read_counts, read_update
from mest_fed.sparsity.state import SparseState
from mest_fed.training import Metrics, Objective
from mest_fed.wire import UnknownMaskError, encode
from mest_fed.wire.records import to_record

SPEC = spec_for("unstructured")
SENT = random_state(SPEC, 0.2, seed=1)


@pytest.fixture
def instruction():
    return Message(RecordDict(), 7, "train")


def trained(masks=None):
    """Return what training leaves: the masks that were sent and other values."""
    return random_state(SPEC, seed=2, masks=SENT.masks if masks is None else masks)


def counts_of(instruction, **changes):
    reply = Message(RecordDict({"metrics": metrics(20, **changes)}), reply_to=instruction)
    return read_counts(reply, 20, epochs=3)


def read(reply, mask_may_change=False):
    return read_update(reply, SPEC, SENT, mask_may_change=mask_may_change)


def test_honest_counts(instruction):
    counts = counts_of(instruction, presented=60, correct=45, loss_sum=12.5)
    assert counts == Counts(20, Metrics(12.5, 60, 60, {"correct": 45.0}))
    assert counts_of(instruction, presented=None).totals.examples == 20


def test_no_metrics(instruction):
    for content in ({}, {"metrics": ConfigRecord({"num-examples": 20})}):
        with pytest.raises(WireError, match="no metrics"):
            read_counts(Message(RecordDict(content), reply_to=instruction), 20)


@pytest.mark.parametrize("key", ["num-examples", "loss-sum"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -1, -0.5, [1.0, 2.0]])
def test_a_metric_that_is_no_count(instruction, key, value):
    with pytest.raises(WireError, match=f"metric {key} = .* is not a number from 0"):
        counts_of(instruction, **{key: value})


@pytest.mark.parametrize("examples", [0, 19, 21, 10**18])
def test_another_number_of_examples_than_announced(instruction, examples):
    with pytest.raises(WireError, match=f"num-examples = {examples}, but the node has 20"):
        counts_of(instruction, num_examples=examples)


@pytest.mark.parametrize(("correct", "presented"), [(21, 20), (21, None), (-1, 20), (-0.5, 20)])
def test_an_accuracy_that_is_no_share(instruction, correct, presented):
    with pytest.raises(WireError, match="over 20 presented are impossible: accuracy = "):
        counts_of(instruction, correct=correct, presented=presented)


@pytest.mark.parametrize("value", [math.nan, math.inf, [math.nan]])
def test_a_sum_that_is_not_finite(instruction, value):
    with pytest.raises(WireError, match="metric correct "):
        counts_of(instruction, correct=value)


@pytest.mark.parametrize(
    ("correct", "reason"), [(None, "KeyError: 'correct'"), ([1.0, 2.0], "TypeError")]
)
def test_a_sum_that_is_missing_or_of_another_shape(instruction, correct, reason):
    with pytest.raises(WireError, match=f"values\\(\\) raised {reason}"):
        counts_of(instruction, correct=correct)


def test_sums_over_nothing(instruction):
    with pytest.raises(WireError, match="it has sums over no example"):
        counts_of(instruction, correct=1, presented=0)


@pytest.mark.parametrize("presented", [-1, 20.5, [20]])
def test_impossible_presentations(instruction, presented):
    with pytest.raises(WireError, match=r"presented = .* is not a whole number from 0"):
        counts_of(instruction, correct=5, presented=presented)


def test_a_negative_loss_where_the_task_may_have_one(instruction):
    class Likelihood(Objective):
        def losses(self, outputs, targets):
            return outputs - targets

    reply = Message(RecordDict({"metrics": metrics(20, loss_sum=-3.0)}), reply_to=instruction)
    assert read_counts(reply, 20, objective=Likelihood()).totals.mean_loss == -0.15


def test_a_loss_that_no_training_gives(instruction):
    # Sums of such losses would overflow, and no record could hold them.
    with pytest.raises(WireError, match="loss-sum = 1e\\+308"):
        counts_of(instruction, loss_sum=1e308)


@pytest.mark.parametrize("presented", [61, 10**18])
def test_more_presentations_than_the_order_allows(instruction, presented):
    with pytest.raises(WireError, match=f"{presented} presented, more than 3 times 20 examples"):
        counts_of(instruction, presented=presented)


@pytest.mark.parametrize("value", [1.1e18, -3e38])
@pytest.mark.parametrize("name", ["values", "dense"])
def test_a_weight_whose_square_is_not_finite(instruction, name, value):
    reply = reply_with(instruction, trained(), SPEC, 20)
    spoiled = reply.content["arrays"][name].numpy().copy()
    spoiled[0] = value
    reply.content["arrays"][name] = Array(spoiled)
    with pytest.raises(WireError, match=r"has a number beyond 1e\+18"):
        read(reply)


@pytest.mark.parametrize("value", [-1e-30, -1.0])
@pytest.mark.parametrize("codec", ["fp32", "bf16"])
def test_a_negative_running_variance(instruction, codec, value):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.InstanceNorm2d(4))
    spec, sent = model_spec(net), read_state(net)
    assert spec.non_negative == {"1.running_var"}
    honest = SparseState({}, {}, {k: v.copy() for k, v in sent.dense.items()})
    honest.dense["1.running_var"][:] = 0
    honest.dense["1.running_mean"][:] = -5

    def offered():
        reply = Message(to_record(encode(honest, spec, values=codec)[0]), reply_to=instruction)
        return read_update(reply, spec, sent, mask_may_change=False)

    assert (offered().dense["1.running_mean"] == -5).all()
    honest.dense["1.running_var"][2] = value
    with pytest.raises(WireError, match=r"1\.running_var has a negative number"):
        offered()


def test_an_honest_update(instruction):
    want = trained()
    for known in (SENT.masks, None):
        got = read(reply_with(instruction, want, SPEC, 20, known=known))
        for layer, values in want.values.items():
            np.testing.assert_array_equal(got.values[layer], values)
        np.testing.assert_array_equal(got.dense["bias"], want.dense["bias"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["values", "dense"])
def test_values_that_are_not_finite(instruction, name, value):
    reply = reply_with(instruction, trained(), SPEC, 20)
    spoiled = reply.content["arrays"][name].numpy().copy()
    spoiled[1] = value
    reply.content["arrays"][name] = Array(spoiled)
    with pytest.raises(WireError, match="finite"):
        read(reply)


def test_another_mask_than_was_sent(instruction):
    other = trained(random_masks(SPEC, 0.2, seed=9))
    with pytest.raises(WireError, match="the mask is not the one that was sent"):
        read(reply_with(instruction, other, SPEC, 20, known=SENT.masks))


def test_another_mask_after_mutation(instruction):
    other = trained(random_masks(SPEC, 0.2, seed=9))
    got = read(reply_with(instruction, other, SPEC, 20, known=SENT.masks), mask_may_change=True)
    np.testing.assert_array_equal(got.masks["a"], other.masks["a"])


@pytest.mark.parametrize("mask_may_change", [False, True])
def test_a_mask_that_grew(instruction, mask_may_change):
    inactive = np.setdiff1d(np.arange(SPEC.layouts["b"].num_slots), SENT.masks["b"])
    grown = np.sort(np.append(SENT.masks["b"], inactive[0])).astype(np.int32)
    state = trained({"a": SENT.masks["a"], "b": grown})
    reply = reply_with(instruction, state, SPEC, 20, known=SENT.masks)
    with pytest.raises(
        WireError, match=f"b has {len(grown)} active granules; {len(grown) - 1} were"
    ):
        read(reply, mask_may_change=mask_may_change)


def test_a_mask_that_shrank_after_mutation(instruction):
    state = trained({"a": SENT.masks["a"], "b": SENT.masks["b"][1:]})
    reply = reply_with(instruction, state, SPEC, 20)
    assert len(read(reply, mask_may_change=True).masks["b"]) == len(SENT.masks["b"]) - 1


def test_an_unknown_mask_hash(instruction):
    masks = random_masks(SPEC, 0.2, seed=9)
    reply = reply_with(instruction, trained(masks), SPEC, 20, known=masks)  # by its hash alone
    with pytest.raises(UnknownMaskError):
        read(reply, mask_may_change=True)


def test_another_model(instruction):
    other = spec_for("channel")
    reply = reply_with(instruction, random_state(other), other, 20)
    with pytest.raises(WireError):
        read(reply)


def test_differences_from_another_reference(instruction):
    state, reference = trained(), random_state(SPEC, seed=5, masks=SENT.masks)
    payload, _ = encode(state, SPEC, values="int8", known=SENT.masks, reference=reference)
    content = to_record(payload)
    with pytest.raises(WireError, match="another reference"):
        read(Message(content, reply_to=instruction))


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"arrays": ArrayRecord()},
        {"arrays": ArrayRecord(), "mest": ConfigRecord({"header": b""})},
        {"arrays": ArrayRecord(), "mest": ConfigRecord({"header": "text"})},
        {"arrays": ArrayRecord(), "mest": ConfigRecord({"header": b"\x00" * 64})},
        {"arrays": MetricRecord({"values": 1.0}), "mest": ConfigRecord({"header": b"x"})},
        {
            "arrays": ArrayRecord({"values": Array("float32", (3,), "numpy.ndarray", b"garbage")}),
            "mest": ConfigRecord({"header": b"x"}),
        },
    ],
)
def test_garbage(instruction, content):
    with pytest.raises(WireError):
        read(Message(RecordDict(content), reply_to=instruction))


def test_a_header_of_another_message(instruction):
    reply = reply_with(instruction, trained(), SPEC, 20)
    smaller = SparseState(
        {group: slots[:5] for group, slots in SENT.masks.items()},
        {layer: values[:5] for layer, values in SENT.values.items()},
        SENT.dense,
    )
    reply.content["mest"] = reply_with(instruction, smaller, SPEC, 20).content["mest"]
    with pytest.raises(WireError):
        read(reply)
