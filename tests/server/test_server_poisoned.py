"""A fifth of the clients sends its update with the sign flipped, ten times as long: a toy problem.

Each honest client moves half of the way to one target, but for noise of its own.
"""

import numpy as np
import pytest
from server_parts import StubGrid, capability, received, reply_with, strategy_of, train_messages

from mest_fed.rng import numpy_generator
from mest_fed.sparsity.state import SparseState

#: Node id -> partition.
CLIENTS = {100 + partition: partition for partition in range(10)}
POISONED = (102, 107)
ROUNDS, NOISE = 8, 0.02


def moved(before, after, factor):
    """Return a state at so many times the way from one to another."""
    values = {
        n: before.values[n] + factor * (after.values[n] - before.values[n]) for n in after.values
    }
    dense = {n: before.dense[n] + factor * (after.dense[n] - before.dense[n]) for n in after.dense}
    return SparseState(before.masks, *(_singles(each) for each in (values, dense)))


def _singles(tensors):
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def target_of(state, *path):
    """Return a target: every number moved by a draw, or by noise where there is a path."""
    rng, scale = numpy_generator(5, "target", *path), NOISE if path else 0.1

    def drawn(tensors):
        return {n: a + rng.normal(scale=scale, size=a.shape) for n, a in tensors.items()}

    return SparseState(state.masks, _singles(drawn(state.values)), _singles(drawn(state.dense)))


def distance(state, other):
    parts = [state.values[n] - other.values[n] for n in state.values]
    parts += [state.dense[n] - other.dense[n] for n in state.dense]
    return float(np.sqrt(sum(np.square(part, dtype=np.float64).sum() for part in parts)))


def left_after(poisoned, **server):
    """Return how far the model is from the target in the end, as a share of the start."""
    strategy = strategy_of(server={"clients_per_round": 10, **server}, fleet={"devices": 10})
    grid = StubGrid({node: capability(p) for node, p in CLIENTS.items()})
    spec, start = strategy.model.spec, strategy.model.state()
    target = target_of(start)
    for number in range(1, ROUNDS + 1):
        strategy.clients.known_mask = {}  # so that the instructions can be read
        replies = []
        for node, message in train_messages(strategy, grid, number).items():
            sent = received(message, spec)
            trained = moved(sent, target_of(target, node, number), 0.5)
            if node in poisoned:
                trained = moved(sent, trained, -10.0)
            examples = 10 * (CLIENTS[node] + 1)
            replies.append(reply_with(message, trained, spec, examples, known=sent.masks))
        strategy.aggregate_train(number, replies)
        assert strategy.record.count("ok") == 10, "what is poisoned looks like an update"
    return distance(strategy.model.state(), target) / distance(start, target)


def test_the_mean_is_lost_and_what_is_robust_is_not():
    clean = left_after(())
    assert clean < 0.1
    assert left_after(POISONED) > 2.0
    assert left_after(POISONED, trim=0.2) < clean + 0.1
    start = strategy_of(fleet={"devices": 10}).model.state()
    bound = 0.5 * distance(start, target_of(start))  # an honest client's first step
    assert left_after(POISONED, clip_norm=bound) < 0.3
    assert left_after(POISONED, clip_norm=bound, trim=0.2) < clean + 0.1
    assert left_after(POISONED, clip_median=1.0) < 0.3


@pytest.mark.parametrize("how", [{"trim": 0.2}, {"clip_norm": 1e3}])
def test_it_costs_little_where_nobody_is_poisoned(how):
    assert left_after((), **how) < left_after(()) + 0.05
