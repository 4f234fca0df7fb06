"""Instructions on their way survive an interruption: the same model, the same records."""

import numpy as np
import pytest
from server_parts import NODES, capability, strategy_of
from timed_grid import TimedGrid, play

from mest_fed.errors import InputError
from mest_fed.rng import numpy_generator
from mest_fed.server.checkpoint import (
    load_checkpoint,
    restore_strategy,
    save_checkpoint,
    strategy_arrays,
)

ROUNDS = 9
MODES = {
    "buffered": {"mode": "buffered", "concurrency": 3, "buffer": 2},
    "semi-sync": {"mode": "semi-sync", "concurrency": 3, "period": 4.0},
    "first": {"clients_per_round": 2, "over_selection": 1.5},
}
WIRES = {"fp32": {}, "int8": {"upload": "int8", "download": "bf16"}}
SPARSITIES = {
    "ems": {"method": "mest-ems", "period": 2 / ROUNDS, "scheme": "pattern"},
    "dense": {"method": "dense"},
}


def seconds(node, number):
    """Return how long an instruction takes: unlike each time, sometimes equal."""
    return float(numpy_generator(node, "seconds", number).integers(1, 12))


def fleet(mode, wire="fp32", sparsity="ems"):
    strategy = strategy_of(
        run={"rounds": ROUNDS},
        server=MODES[mode] | {"evaluate_clients_every": 3, "optimizer": "fedavgm"},
        wire=WIRES[wire],
        sparsity=SPARSITIES[sparsity],
    )
    grid = TimedGrid(strategy, seconds)
    if sparsity == "dense":
        grid.capabilities = {node: capability(p, 1.0) for p, node in enumerate(NODES)}
    else:
        grid.capabilities[NODES[1]] = capability(1, 0.05)  # of a lower tier
    grid.evaluation_seconds = 2.5
    return strategy, grid


def final(strategy):
    arrays, facts = strategy_arrays(strategy)
    return {key: array.tobytes() for key, array in arrays.items()}, facts


@pytest.mark.soak
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_was_stopped_comes_to_the_same_end(mode, wire, sparsity, tmp_path):
    whole, grid = fleet(mode, wire, sparsity)
    points = []

    def stop(number):
        if number not in (1, 4, 7):
            return
        path = tmp_path / f"{number}.npz"
        save_checkpoint(path, *strategy_arrays(whole))
        other, _ = fleet(mode, wire, sparsity)
        points.append((number, path, other, grid.resumed(other)))

    records = play(whole, grid, ROUNDS, stop)
    assert any(load_checkpoint(path)[1]["kept"] for _, path, _, _ in points)
    for number, path, other, resumed in points:
        restore_strategy(other, *load_checkpoint(path))
        again = strategy_arrays(other)[1]  # a run may be stopped twice in one round
        assert again["kept"] == load_checkpoint(path)[1]["kept"]
        assert play(other, resumed, ROUNDS - number) == records[number:]
        assert final(other) == final(whole)
        assert resumed.now == grid.now


def test_what_is_sent_to_many_is_written_once():
    strategy, grid = fleet("buffered")
    grid.seconds = lambda node, number: float(NODES.index(node) + 1) * 10
    strategy.configure_train(1, None, None, grid)
    assert len(strategy.pending_updates) == 3
    densities = {pending.node.density for pending in strategy.pending_updates.values()}
    arrays, facts = strategy_arrays(strategy)
    assert {key.partition("|")[0] for key in arrays if key.startswith("sent-masks:")} == {
        f"sent-masks:{place}" for place in range(len(densities))
    }
    assert len(facts["kept"]) == 3


def stopped(mode="buffered"):
    strategy, grid = fleet(mode)
    play(strategy, grid, 2)
    assert strategy.pending_updates
    return strategy_arrays(strategy)


def without_values(arrays, facts):
    del arrays[next(key for key in arrays if key.startswith("sent-values:0|"))]


def with_cut_values(arrays, facts):
    key = next(key for key in arrays if key.startswith("sent-values:0|"))
    arrays[key] = arrays[key][1:]


def with_wrong_masks(arrays, facts):
    key = next(key for key in arrays if key.startswith("sent-masks:0|"))
    arrays[key] = arrays[key][::-1].copy()


def without_births(arrays, facts):
    for key in [key for key in arrays if key.startswith("born|")]:
        del arrays[key]


def with_short_births(arrays, facts):
    key = next(key for key in arrays if key.startswith("born|"))
    arrays[key] = arrays[key][1:]


def without_header(arrays, facts):
    del arrays["headers|0"]


def with_a_strange_node(arrays, facts):
    facts["kept"][0]["node"] = {"name": "nobody"}


def without_facts(arrays, facts):
    facts["kept"] = None


@pytest.mark.parametrize(
    "change",
    [
        without_values,
        with_cut_values,
        with_wrong_masks,
        without_births,
        with_short_births,
        without_header,
        with_a_strange_node,
        without_facts,
    ],
)
def test_a_damaged_checkpoint_is_refused(change):
    arrays, facts = stopped()
    change(arrays, facts)
    fresh, _ = fleet("buffered")
    before = final(fresh)
    with pytest.raises(InputError, match="the checkpoint is not of this run"):
        restore_strategy(fresh, arrays, facts)
    assert final(fresh) == before


def test_arrays_are_shared_and_stay():
    strategy, grid = fleet("buffered")
    play(strategy, grid, 2)
    arrays, _ = strategy_arrays(strategy)
    copies = {key: array.copy() for key, array in arrays.items()}
    strategy.first_round = 2
    play(strategy, grid, 2)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, copies[key])
