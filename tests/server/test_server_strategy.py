"""The strategy on hand-made replies: what a bad one costs, who is sent what, when masks change."""

import logging
import math
from collections import Counter

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message, RecordDict
from server_parts import (
    NODES,
    capability,
    error_to,
    random_masks,
    random_state,
    received,
    reply_with,
    strategy_of,
    train_messages,
)

from mest_fed.schema import FailureKind, code_of_failure
from mest_fed.server.rows import round_row
from mest_fed.sparsity.state import SparseState
from mest_fed.wire import UnknownMaskError, mask_hash
from mest_fed.wire.records import content_bytes


def examples_of(message):
    """Return the examples of the node that an instruction goes to."""
    return 10 * (NODES.index(message.metadata.dst_node_id) + 1)


def shifted(state, amount):
    """Return a state whose every value and dense tensor is larger by an amount."""
    values = {layer: array + np.float32(amount) for layer, array in state.values.items()}
    dense = {name: array + np.float32(amount) for name, array in state.dense.items()}
    return SparseState(state.masks, values, dense)


def honest(strategy, message, amount=0.5):
    """Return what a client without masks answers whose training adds an amount to everything."""
    spec = strategy.model.spec
    state = shifted(received(message, spec), amount)
    return reply_with(message, state, spec, examples_of(message), known=state.masks)


def with_array(reply, name, change):
    array = reply.content["arrays"][name].numpy().copy()
    reply.content["arrays"][name] = Array(change(array))
    return reply


def nan_values(strategy, message):
    def spoil(array):
        array[3] = math.nan
        return array

    return with_array(honest(strategy, message), "values", spoil)


def huge_values(strategy, message):
    return with_array(honest(strategy, message), "values", lambda array: array + np.float32(2e18))


def wrong_mask(strategy, message):
    spec = strategy.model.spec
    other = random_state(spec, seed=1, masks=random_masks(spec, 0.2, seed=1))
    return reply_with(message, other, spec, examples_of(message))


def garbage_header(strategy, message):
    reply = honest(strategy, message)
    reply.content["mest"] = ConfigRecord({"header": bytes(range(200))})
    return reply


def garbage_array(strategy, message):
    reply = honest(strategy, message)
    array = reply.content["arrays"]["values"]
    reply.content["arrays"]["values"] = Array(array.dtype, array.shape, array.stype, b"\x93NUMPY")
    return reply


def cut_values(strategy, message):
    return with_array(honest(strategy, message), "values", lambda array: array[:-1])


def no_metrics(strategy, message):
    reply = honest(strategy, message)
    del reply.content["metrics"]
    return reply


def wrong_examples(strategy, message):
    reply = honest(strategy, message)
    reply.content["metrics"]["num-examples"] = 10**6
    return reply


def presented_too_often(strategy, message):
    reply = honest(strategy, message)
    reply.content["metrics"]["presented"] = 10**6
    return reply


def nan_loss(strategy, message):
    reply = honest(strategy, message)
    reply.content["metrics"]["loss-sum"] = math.nan
    return reply


def empty(strategy, message):
    return Message(RecordDict(), reply_to=message)


BAD = {
    nan_values: "finite",
    huge_values: " has a number beyond 1e+18",
    wrong_mask: "the mask is not the one that was sent",
    garbage_header: "",
    garbage_array: "array values",
    cut_values: "array values",
    no_metrics: "no metrics",
    wrong_examples: "num-examples = 1000000",
    presented_too_often: "1000000 presented, more than 1 times 30 examples",
    nan_loss: "loss-sum = nan",
    empty: "no metrics",
}


def test_an_average_by_hand(strategy, grid):
    messages = train_messages(strategy, grid)
    before = strategy.model.state()
    replies = [honest(strategy, m, 1.0 + n) for n, m in enumerate(messages.values())]
    _, metrics = strategy.aggregate_train(1, replies)
    added = sum(examples_of(m) * (1.0 + n) for n, m in enumerate(messages.values())) / sum(
        examples_of(m) for m in messages.values()
    )
    after = strategy.model.state()
    for layer, values in before.values.items():
        np.testing.assert_allclose(after.values[layer], values + added, rtol=1e-5, atol=1e-5)
    for name, values in before.dense.items():
        np.testing.assert_allclose(after.dense[name], values + added, rtol=1e-5, atol=1e-5)
    assert metrics["trained"] == 4
    assert strategy.record.count("ok") == 4


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_reply_costs_its_own_update_only(strategy, grid, spoil):
    messages = train_messages(strategy, grid)
    before = strategy.model.state()
    bad = spoil(strategy, messages[NODES[2]])
    replies = [honest(strategy, messages[NODES[0]]), bad, honest(strategy, messages[NODES[3]])]
    strategy.aggregate_train(1, replies)
    after = strategy.model.state()
    for layer, values in before.values.items():
        np.testing.assert_allclose(after.values[layer], values + 0.5, rtol=1e-5, atol=1e-5)
    outcomes = strategy.record.clients
    assert [outcome.partition for outcome in outcomes] == [0, 1, 2, 3]
    assert [o.status for o in outcomes] == ["ok", "late", "rejected", "ok"]
    assert outcomes[1].reason == "no reply"
    assert BAD[spoil] in outcomes[2].reason
    assert outcomes[2].bytes_up == content_bytes(bad.content)
    assert strategy.record.train_loss == pytest.approx(1.5)


@pytest.mark.parametrize("server", [{}, {"trim": 0.2}], ids=["summed", "kept"])
@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_reply_is_one_line_in_the_log(grid, caplog, spoil, server):
    strategy = strategy_of(server=server)
    messages = train_messages(strategy, grid)
    with caplog.at_level(logging.WARNING, "mest_fed.server"):
        strategy.aggregate_train(1, [spoil(strategy, messages[NODES[2]])])
    (line,) = caplog.messages
    assert line.startswith(f"the update of node {NODES[2]} (partition 2) was rejected: ")
    assert BAD[spoil] in line
    assert "\n" not in line
    assert len(line) < 200


def test_an_error_costs_its_own_update_only(strategy, grid):
    messages = train_messages(strategy, grid)
    before = strategy.model.state()
    replies = [error_to(messages[NODES[1]], "out of memory"), honest(strategy, messages[NODES[0]])]
    strategy.aggregate_train(1, replies)
    layer, values = next(iter(before.values.items()))
    np.testing.assert_allclose(
        strategy.model.state().values[layer], values + 0.5, rtol=1e-5, atol=1e-5
    )
    failed = strategy.record.clients[1]
    assert (failed.status, failed.reason, failed.bytes_up) == ("failed", "out of memory", 0)
    assert failed.train_loss is None


@pytest.mark.parametrize(
    ("failure", "status", "level"),
    [
        ("busy", "declined", "INFO"),
        ("battery-low", "away", "INFO"),
        ("occupied", "late", "WARNING"),
    ],
)
def test_a_device_that_may_not_train_is_no_warning(grid, caplog, failure, status, level):
    caplog.set_level("INFO", "mest_fed.server")
    strategy = strategy_of()
    messages = train_messages(strategy, grid)
    code = code_of_failure(FailureKind(failure))
    wrong = Message(Error(code, "the device is at 80 degrees"), reply_to=messages[NODES[1]])
    strategy.aggregate_train(1, [honest(strategy, messages[NODES[0]]), wrong])
    row = round_row(strategy.record, [], virtual_seconds=0.0, wall_seconds=0.0)
    assert row["tasks"] == Counter(["ok", status, "late", "late"])
    assert row["failures"] == Counter([failure, "no-reply", "no-reply"])
    (said,) = [it for it in caplog.records if "80 degrees" in it.getMessage()]
    assert said.levelname == level


def test_when_all_fail_the_model_stays(strategy, grid):
    messages = train_messages(strategy, grid)
    before = strategy.model.state()
    arrays, _ = strategy.aggregate_train(1, [error_to(m) for m in messages.values()])
    after = strategy.model.state()
    np.testing.assert_array_equal(
        np.concatenate([v.ravel() for v in after.dense.values()]),
        np.concatenate([v.ravel() for v in before.dense.values()]),
    )
    assert arrays is not None
    assert strategy.record.without_reply == 4
    assert strategy.record.train_loss is None
    assert len(train_messages(strategy, grid, 2)) == 4


def test_the_mask_is_sent_once(strategy, grid):
    spec = strategy.model.spec
    first = train_messages(strategy, grid)
    masks = received(first[NODES[0]], spec).masks
    strategy.aggregate_train(1, [honest(strategy, m) for m in first.values()])
    for message in train_messages(strategy, grid, 2).values():
        with pytest.raises(UnknownMaskError):
            received(message, spec)
        received(message, spec, masks)


@pytest.mark.parametrize(
    "spoil", [*BAD, error_to, None], ids=lambda s: getattr(s, "__name__", "silence")
)
def test_who_did_not_answer_well_is_sent_everything_anew(grid, spoil):
    # It may have kept the mask of this round, or still hold the one before: nobody knows.
    strategy = strategy_of(sparsity={"method": "mest-em", "period": 0.125})
    spec = strategy.model.spec
    first = train_messages(strategy, grid)
    masks = received(first[NODES[2]], spec).masks
    strategy.aggregate_train(1, [honest(strategy, m) for m in first.values()])
    message = train_messages(strategy, grid, 2)[NODES[2]]
    received(message, spec, masks)
    with pytest.raises(UnknownMaskError):
        received(message, spec)
    replies = []
    if spoil is error_to:
        replies = [error_to(message)]
    elif spoil is not None:
        strategy.clients.known_mask = {}
        twin = train_messages(strategy, grid, 2)[NODES[2]]  # the same in full, to be read here
        strategy.clients.known_mask = dict.fromkeys(NODES, mask_hash(masks))
        train_messages(strategy, grid, 2)
        replies = [spoil(strategy, twin)]
    strategy.aggregate_train(2, replies)
    received(train_messages(strategy, grid, 3)[NODES[2]], spec)


def test_the_order_of_replies_does_not_matter(grid):
    states = []
    for order in (1, -1):
        strategy = strategy_of()
        messages = train_messages(strategy, grid)
        replies = [honest(strategy, m, 0.1 * n) for n, m in enumerate(messages.values())]
        strategy.aggregate_train(1, replies[::order])
        states.append(strategy.model.state())
        assert [outcome.partition for outcome in strategy.record.clients] == [0, 1, 2, 3]
    for layer, values in states[0].values.items():
        np.testing.assert_allclose(values, states[1].values[layer], rtol=1e-5, atol=1e-6)


def test_bytes_are_those_of_the_messages(strategy, grid):
    messages = train_messages(strategy, grid)
    replies = [honest(strategy, m) for m in messages.values()]
    strategy.aggregate_train(1, replies)
    assert strategy.record.bytes_down() == sum(content_bytes(m.content) for m in messages.values())
    assert strategy.record.bytes_up == sum(content_bytes(r.content) for r in replies)
    by_node = {outcome.node_id: outcome for outcome in strategy.record.clients}
    for reply in replies:
        outcome = by_node[reply.metadata.src_node_id]
        assert outcome.bytes_up == content_bytes(reply.content)
        assert outcome.bytes_down == content_bytes(messages[outcome.node_id].content)


def test_large_losses_do_not_overflow(strategy, grid):
    messages = train_messages(strategy, grid)
    replies = [honest(strategy, m) for m in messages.values()]
    for reply in replies:
        reply.content["metrics"]["loss-sum"] = 1e38
    strategy.aggregate_train(1, replies)
    assert math.isfinite(strategy.record.train_loss)


def test_devices_of_a_lower_tier_get_and_send_a_part(grid):
    strategy = strategy_of()
    grid.capabilities[NODES[0]] = capability(0, 0.05)
    spec = strategy.model.spec
    messages = train_messages(strategy, grid)
    states = {n: received(m, spec) for n, m in messages.items()}
    for group, slots in states[NODES[0]].masks.items():
        assert len(slots) < len(states[NODES[1]].masks[group])
        assert np.isin(slots, states[NODES[1]].masks[group]).all()
    before = strategy.model.state()
    strategy.aggregate_train(1, [honest(strategy, messages[NODES[0]])])
    after = strategy.model.state()
    group = next(iter(spec.groups))
    held = np.isin(before.masks[group], states[NODES[0]].masks[group])
    assert 0 < held.sum() < len(held)
    np.testing.assert_allclose(
        after.values[group][held], before.values[group][held] + 0.5, rtol=1e-5
    )
    np.testing.assert_array_equal(after.values[group][~held], before.values[group][~held])


def run_rounds(strategy, grid, rounds):
    """Run rounds with honest clients; return the density after each."""
    densities = []
    for number in range(1, rounds + 1):
        strategy.clients.known_mask = {}  # so that the instructions can be read
        messages = train_messages(strategy, grid, number)
        strategy.aggregate_train(number, [honest(strategy, m, 0.01) for m in messages.values()])
        densities.append(strategy.record.density)
    return densities


def test_the_server_mutates_when_due_and_ends_at_the_target(grid):
    # 8 rounds, one period of 1/4: mutations after rounds 2, 4 and 6, the cut after 8.
    strategy = strategy_of(sparsity={"method": "mest-ems", "period": 0.25})
    start = strategy.record.density
    ratios = np.array(run_rounds(strategy, grid, 8)) / start
    # progress 2/8 and 4/8: half more; 6/8: the late stage
    np.testing.assert_allclose(ratios, [1, 1.5, 1.5, 1.5, 1.5, 1, 1, 1], atol=0.01)


def test_static_masks_stay(grid):
    strategy = strategy_of(sparsity={"method": "static", "period": 0.125})
    before = strategy.model.state()
    run_rounds(strategy, grid, 8)
    for group, slots in before.masks.items():
        np.testing.assert_array_equal(strategy.model.masks[group], slots)


def test_clients_mutate_when_asked_and_their_masks_are_adopted(grid):
    mutation = {"method": "mest-em", "mutation": "client", "period": 0.25}
    strategy = strategy_of(sparsity=mutation)
    spec = strategy.model.spec
    asked = []
    for number in range(1, 5):
        strategy.clients.known_mask = {}
        messages = train_messages(strategy, grid, number)
        asked.append({m.content["mest"]["mutate"] for m in messages.values()})
        replies = [honest(strategy, m, 0.01) for m in messages.values()]
        if asked[-1] == {True}:
            before = strategy.model.state()
            grown = random_masks(spec, 0.15, seed=4)
            state = random_state(spec, seed=4, masks=grown)
            state = shifted(state, 100)
            replies = [reply_with(m, state, spec, examples_of(m)) for m in messages.values()]
            strategy.aggregate_train(number, replies)
            for group, slots in grown.items():
                assert np.isin(slots, strategy.model.masks[group]).all()
                assert len(strategy.model.masks[group]) == len(before.masks[group])
        else:
            strategy.aggregate_train(number, replies)
    # the start of round 3 is a quarter of the way
    assert asked == [{False}, {False}, {True}, {False}]


def test_what_all_clients_replaced_is_replaced(grid):
    mutation = {"method": "mest-em", "mutation": "client", "period": 0.125}
    strategy = strategy_of(sparsity=mutation)
    spec = strategy.model.spec
    before = strategy.model.state()
    group = next(iter(spec.groups))
    slots = before.masks[group]
    born = np.setdiff1d(np.arange(spec.group_layout(group).num_slots), slots)[:3]
    masks = before.masks | {group: np.sort(np.append(slots[3:], born)).astype(np.int32)}
    values = dict(before.values)
    # What is born is small next to what died, as it is after a single round.
    values[group] = np.full((len(slots), 1), 1e-3, np.float32)
    strategy.first_round = 1
    messages = train_messages(strategy, grid)
    after = SparseState(masks, values, before.dense)
    replies = [reply_with(m, after, spec, examples_of(m)) for m in messages.values()]
    strategy.aggregate_train(1, replies)
    np.testing.assert_array_equal(strategy.model.masks[group], masks[group])
    np.testing.assert_array_equal(np.sort(strategy.model.grown[group]), born)


def test_a_resumed_strategy_counts_on(grid):
    strategy = strategy_of()
    strategy.first_round = 5
    messages = train_messages(strategy, grid, 1)
    assert {m.content["mest"]["round"] for m in messages.values()} == {6}
    assert strategy.record.round == 6


def test_a_dense_model(grid):
    strategy = strategy_of(sparsity={"method": "dense"})
    grid.capabilities = {n: capability(p, 1.0) for p, n in enumerate(NODES)}
    grid.capabilities[NODES[0]] = capability(0, 0.5)  # a dense model has no parts
    messages = train_messages(strategy, grid)
    assert set(messages) == set(NODES[1:])
    before = strategy.model.state()
    strategy.aggregate_train(1, [honest(strategy, m) for m in messages.values()])
    for name, values in before.dense.items():
        np.testing.assert_allclose(strategy.model.dense[name], values + 0.5, rtol=1e-5, atol=1e-5)
