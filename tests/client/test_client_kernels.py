"""A device chooses its kernels once, by itself, unless its task has those of the run."""

from functools import partial

import pytest
from client_parts import context_of, instruction, small_config, start_of

import mest_fed.client.handlers
import mest_fed.client.kernels
from mest_fed.client.app import app
from mest_fed.client.local_round import ClientState
from mest_fed.config import to_flat
from mest_fed.kernels import native
from mest_fed.kernels.choice import EVERYTHING_DENSE, Choices
from mest_fed.kernels.table import parse_table
from mest_fed.nn import SparseLayer
from mest_fed.nn.tuning import tune
from mest_fed.process_tasks import PROCESS_TASKS
from mest_fed.task import Task

pytestmark = pytest.mark.skipif(native.variant() is None, reason="no compiled kernels")


@pytest.fixture(autouse=True)
def timed(monkeypatch):
    """Let dense weights win; return what took part in each benchmark."""
    held = []

    def benchmark(candidates):
        held.append(tuple(candidates))
        return {name: 1.0 if name == "dense" else 2.0 for name in candidates}

    monkeypatch.setattr(mest_fed.client.kernels, "tune", partial(tune, benchmark=benchmark))
    return held


@pytest.fixture
def inside(monkeypatch):
    """Return the kernels that clients trained with."""
    seen, train = [], mest_fed.client.handlers.train_round

    def note(*arguments, choices, guard):
        seen.append(choices)
        return train(*arguments, choices=choices, guard=guard)

    monkeypatch.setattr(mest_fed.client.handlers, "train_round", note)
    return seen


def with_kernels(kernels, **more):
    training = {"batch_size": 64, "device": "cpu", "kernels": str(kernels)}
    config = small_config(training=training | more)
    in_a_new_process(config)
    return config


def in_a_new_process(config):
    """Let the next device find a task that no other has used."""
    PROCESS_TASKS.put(to_flat(config), Task(config))


def play(config, context, kind="train"):
    reply = app(instruction(config, start_of(config), kind), context)
    assert not reply.has_error()
    return reply


def test_a_device_times_once_and_keeps_what_it_found(timed, inside):
    config = with_kernels("tuned")
    context = context_of(config)
    play(config, context)
    count = len(timed)
    assert count > 0
    in_a_new_process(config)
    play(config, context)
    play(config, context, "evaluate")
    assert len(timed) == count
    table = parse_table(ClientState(context).kernels, "state")
    assert table.mode == "tuned"
    assert {str(row.choice) for row in table.rows} == {"dense"}
    assert inside == [table.choices] * 2


def test_a_process_that_plays_many_devices_times_once(timed):
    config = with_kernels("tuned")
    play(config, context_of(config, 0, device="rpi-4"))
    count = len(timed)
    play(config, context_of(config, 1, device="rpi-4"), "evaluate")
    assert len(timed) == count > 0


def test_nothing_is_chosen_where_the_task_has_the_runs_kernels(timed, inside):
    config, choices = with_kernels("tuned", engine="torch"), Choices(dense=True)
    config = config.model_copy(update={"run": config.run.model_copy(update={"seed": 99})})
    task = PROCESS_TASKS.put(to_flat(config), Task(config, choices=choices))
    context = context_of(config)
    play(config, context)
    assert timed == []
    assert inside == [choices]
    sparse = [layer for layer in task.model.modules() if isinstance(layer, SparseLayer)]
    assert sparse
    assert {layer.choice for layer in sparse} == {EVERYTHING_DENSE}
    assert ClientState(context).kernels is None


def test_the_rule_needs_nothing(timed, inside):
    config = with_kernels("rule")
    context = context_of(config)
    play(config, context)
    assert (timed, inside) == ([], [None])
    assert ClientState(context).kernels is None


def test_the_dense_weight(timed, inside):
    config = with_kernels("dense")
    play(config, context_of(config))
    assert (timed, inside) == ([], [Choices(dense=True)])


def test_a_table_of_an_earlier_run(timed, inside, tmp_path):
    config = with_kernels("tuned")
    context = context_of(config)
    play(config, context)
    path = tmp_path / "kernels.json"
    path.write_text(ClientState(context).kernels, encoding="utf-8")
    timed.clear()
    again = with_kernels(path)
    play(again, context_of(again))
    assert timed == []
    assert inside[0] == inside[1]
