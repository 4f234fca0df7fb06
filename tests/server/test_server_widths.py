"""HeteroFL's widths: what a narrower model gets, and the average of a layer over who holds it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from server_parts import NODES, StubGrid, capability, reply_with, strategy_of, train_messages
from test_server_strategy import examples_of, shifted

from mest_fed.config import from_table
from mest_fed.errors import InputError
from mest_fed.memory.footprint import footprint
from mest_fed.memory.planner import needed
from mest_fed.nn import read_state, write_state
from mest_fed.server.aggregation.averaging import ArraySum
from mest_fed.server.aggregation.masked import MaskedMean, PositionCache
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.optimizers import FedAvgM, ServerOptimizer
from mest_fed.sparsity.state import ModelSpec, SparseState, corners
from mest_fed.task import Task
from mest_fed.wire import decode
from mest_fed.wire.records import from_record

#: Two layers: three inputs, four hidden units, two outputs.
WIDE = {"first": (4, 3), "second": (2, 4)}
HALF = {"first": (2, 3), "second": (2, 2)}
SPEC = ModelSpec({}, {}, WIDE)


def filled(shapes, value):
    dense = {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}
    return SparseState({}, {}, dense)


def widths(model, **sections):
    """Return the task of a fleet of widths."""
    sections = {"sparsity": {"method": "heterofl"}, "model": model, **sections}
    return Task(from_table(sections, "test"))


def test_an_average_of_two_widths_by_hand():
    mean = MaskedMean(SPEC, PositionCache(SPEC))
    mean.add(filled(WIDE, 1.0), 1)
    mean.add(filled(HALF, 5.0), 3)
    found, held = mean.dense_mean(), mean.dense_held()
    # The corner is (1 * 1 + 3 * 5) / 4; only the wide client holds the rest.
    assert found["first"].tolist() == [[4, 4, 4], [4, 4, 4], [1, 1, 1], [1, 1, 1]]
    assert found["second"].tolist() == [[4, 4, 1, 1], [4, 4, 1, 1]]
    assert all(it.all() for it in held.values())


@pytest.mark.parametrize("optimizer", [ServerOptimizer(), FedAvgM(momentum=0.5)])
def test_what_no_client_holds_stays(optimizer):
    model = GlobalModel.from_state(SPEC, filled(WIDE, 2.0))
    mean = MaskedMean(SPEC, PositionCache(SPEC))
    mean.add(filled(HALF, 5.0), 3)
    model.apply_update(mean, optimizer)
    assert model.dense["first"].tolist() == [[5, 5, 5], [5, 5, 5], [2, 2, 2], [2, 2, 2]]
    assert model.dense["second"].tolist() == [[5, 5, 2, 2], [5, 5, 2, 2]]


def test_sums_of_a_width_are_its_clients_added_up():
    one, two = (MaskedMean(SPEC, PositionCache(SPEC)) for _ in range(2))
    states = [(filled(HALF, 5.0), 3.0), (filled(HALF, 7.0), 1.0)]
    total = None
    for state, weight in states:
        one.add(state, weight)
        part = ArraySum({f"dense|{name}": it for name, it in state.dense.items()}, weight)
        total = part if total is None else total.add(part)
    two.add_sums({}, total.sums(), total.weight)
    for mean in (one, two):
        mean.add(filled(WIDE, 1.0), 4)
    for name, values in one.dense_mean().items():
        np.testing.assert_array_equal(values, two.dense_mean()[name])
    assert one.dense_mean()["first"][0].tolist() == [3.25] * 3  # (3 * 5 + 7 + 4) / 8


def test_a_narrower_network_is_the_first_channels_of_the_wide_one():
    whole = widths({"name": "mlp"})
    half = whole.at_width(0.5)
    state = read_state(whole.build_model())
    write_state(half.model, SparseState({}, {}, corners(state.dense, half.spec.dense)))
    images = torch.randn(3, *whole.example.input_shape, generator=torch.Generator().manual_seed(1))
    x, layers = images.flatten(1), ("hidden.0.0", "hidden.1.0", "classifier")
    given = x.shape[1]
    for layer in layers:
        weight, bias = (torch.from_numpy(state.dense[f"{layer}.{it}"]) for it in ("weight", "bias"))
        made = len(bias) if layer == "classifier" else len(bias) // 2
        x = x @ weight[:made, :given].T + bias[:made]
        x, given = (x if layer == "classifier" else x.relu()), made
    torch.testing.assert_close(half.model(images), x)


@pytest.mark.parametrize("model", [{"name": "resnet8"}, {"name": "cnn2"}, {"name": "mlp"}])
def test_widths_are_nested(model):
    whole = widths(model)
    quarter, half = (whole.at_width(share).spec for share in (0.25, 0.5))
    assert quarter.dense.keys() == half.dense.keys() == whole.spec.dense.keys()
    for name, shape in whole.spec.dense.items():
        assert all(
            a <= b <= c
            for a, b, c in zip(quarter.dense[name], half.dense[name], shape, strict=True)
        )
    assert half.width == 0.5
    assert whole.at_width(1.0) is whole
    assert whole.at_width(0.5).at_width(0.25) is whole.at_width(0.25)


def test_the_planner_cuts_the_width_where_it_comes_first():
    order = "density, micro_batch, release_gradients, recompute, saved, frozen, momentum"
    task = widths({"name": "resnet8", "width": 0.5}, memory={"prefer": order})
    planner = task.planner()
    wished = planner.limits.shape
    halved = footprint(task.trace, planner.setting, replace(wished, density=0.5))
    for budget, density in ((10**9, 1.0), (needed(halved.total), 0.5)):
        plan = task.plan(budget, "a device")
        assert plan.shape == replace(wished, density=density)
        assert plan.footprint.total <= budget
    assert halved.values == task.at_width(0.5).trace.dense_parameters


@pytest.mark.parametrize("server", [{}, {"clip_median": 100.0}])
def test_a_round_of_two_widths(server):
    strategy = strategy_of(sparsity={"method": "heterofl"}, server=server)
    densities = dict(zip(NODES, (1.0, 0.5, 0.5, 0.5), strict=True))
    grid = StubGrid({node: capability(p, densities[node]) for p, node in enumerate(NODES)})
    before = strategy.model.state()
    messages = train_messages(strategy, grid)
    replies = []
    for node, message in messages.items():
        spec = strategy.task.at_width(densities[node]).spec
        state = decode(from_record(message.content), spec, known={})
        for name, values in corners(before.dense, spec.dense).items():
            np.testing.assert_array_equal(state.dense[name], values)
        moved = shifted(state, 1.0 if densities[node] == 1 else 3.0)
        replies.append(reply_with(message, moved, spec, examples_of(message)))
    strategy.aggregate_train(1, replies)
    assert [it.status.value for it in strategy.record.clients] == ["ok"] * 4
    assert [it.density for it in strategy.record.clients] == [1.0, 0.5, 0.5, 0.5]
    name = "stage2.0.conv1.weight"
    added = strategy.model.dense[name] - before.dense[name]
    out, into, *_ = strategy.task.at_width(0.5).spec.dense[name]
    # 10 examples of the wide node, 90 of the others: (10 * 1 + 90 * 3) / 100.
    np.testing.assert_allclose(added[:out, :into], 2.8, rtol=1e-4)
    np.testing.assert_allclose(added[out:], 1.0, rtol=1e-4)
    np.testing.assert_allclose(added[:, into:], 1.0, rtol=1e-4)


def test_a_reply_of_another_width_is_rejected():
    strategy = strategy_of(sparsity={"method": "heterofl"})
    grid = StubGrid({node: capability(p, 0.5) for p, node in enumerate(NODES)})
    messages = train_messages(strategy, grid)
    whole = strategy.model.state()
    replies = [
        reply_with(it, whole, strategy.model.spec, examples_of(it)) for it in messages.values()
    ]
    strategy.aggregate_train(1, replies)
    assert {it.status.value for it in strategy.record.clients} == {"rejected"}
    for name, values in strategy.model.state().dense.items():
        np.testing.assert_array_equal(values, whole.dense[name])


def test_models_of_which_narrower_ones_are_others_are_refused():
    task = widths({"name": "mobilenetv2"})
    with pytest.raises(InputError, match=r"'heterofl' is not allowed with .* = 'mobilenetv2'"):
        task.planner()


@pytest.mark.parametrize(
    "server", [{"mode": "buffered"}, {"over_selection": 1.5}, {"trim": 0.1}], ids=lambda it: str(it)
)
def test_what_averages_one_width_alone_is_refused(server):
    (key,) = server
    with pytest.raises(InputError, match=rf"server.{key} = .* is for models of one width"):
        widths({"name": "mlp"}, server=server)


def test_a_specification_keeps_its_width():
    spec = widths({"name": "mlp"}).at_width(0.25).spec
    assert ModelSpec.read(spec.as_table()) == spec
    assert "width" not in SPEC.as_table()


def test_a_plan_says_that_it_trains_a_share_of_the_channels():
    task = widths({"name": "resnet8", "width": 0.5})
    assert "Trains all of the channels" in task.plan(10**9, "a device").in_words(task.divided)
