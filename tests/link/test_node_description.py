"""A run's description: what was written comes back, and every damage of a field is one line."""

import copy
import json
from dataclasses import replace

import pytest
from edge_processes import config_of

from mest_fed.errors import InputError
from mest_fed.link.description import RunDescription
from mest_fed.link.messages import NodeDescription
from mest_fed.link.server.lean_run import LeanRun, describe_run
from mest_fed.link.server.nodes import Identity, NodeInfo
from mest_fed.task import Task


@pytest.fixture(scope="module")
def run():
    task = Task(config_of())
    return describe_run(task, task.plan(2_000_000, "rpi-4"), 1)


def test_what_was_written_comes_back(run):
    again = RunDescription.read(run.as_json())
    assert again == run
    assert again.as_json() == run.as_json()


@pytest.mark.parametrize("method", ["rigl", "feddst", "feddst:0.1"])
def test_growth_by_dense_gradients_is_refused_in_a_line(method):
    task = Task(config_of(sparsity={"method": method, "mutation": "client"}))
    with pytest.raises(InputError, match=f"{method}' grows by dense gradients.*a lean node"):
        describe_run(task, task.plan(8_000_000, "rpi-4"), 1)


def test_a_node_without_the_examples_of_its_share_is_refused_when_it_registers():
    task = Task(config_of())
    total = sum(task.example_counts(1))
    right = NodeDescription("pi", profile_name="rpi-4", partition=1, examples=total)
    info = NodeInfo(1, Identity(bytes(32), "pi"), right, present=True, open=0)
    run = LeanRun(task)
    assert json.loads(run.describe(info))["partition"] == 1
    wrong = replace(info, description=replace(right, examples=total + 1))
    with pytest.raises(InputError, match=f"pi, partition 1 = {total + 1}.*allowed: {total}"):
        run.describe(wrong)
    unread = replace(info, description=replace(right, examples=0))
    assert json.loads(run.describe(unread))["partition"] == 1


FIELDS = [
    *("spec", "task", "task_options", "inputs", "seed", "rounds", "local_epochs", "batch_size"),
    *("micro_batch", "augmentation", "hold_out", "partition", "method", "density", "upload"),
    *("gradient_weight", "growth", "frozen", "forgetting", "budget", "predicted_peak"),
]

LARGE = ("rounds", "local_epochs", "batch_size", "micro_batch", "partition")


def test_all_fields_are_here(run):
    assert sorted(FIELDS) == sorted(json.loads(run.as_json()))


@pytest.mark.parametrize("field", FIELDS)
def test_a_damaged_field_is_one_line(run, field):
    table = json.loads(run.as_json())
    for wrong in (None, [], [1], {"a": 1}, True, "\n", -5, 1.5, 10**30):
        if field == "task_options" and isinstance(wrong, dict):
            continue
        if field == "frozen" and wrong == []:
            continue
        if field in ("task", "augmentation", "method", "upload") and isinstance(wrong, str):
            continue  # its name is looked up when it is used
        if field in ("seed", "budget", "predicted_peak") and type(wrong) is int:
            continue
        if field in ("density", "gradient_weight", "hold_out") and isinstance(wrong, int | float):
            continue
        if (
            field in ("rounds", "local_epochs", "batch_size", "micro_batch", "partition")
            and wrong == 10**30
        ):
            continue
        damaged(table | {field: wrong}, field)
    less = dict(table)
    del less[field]
    damaged(less, field)


@pytest.mark.parametrize(("field", "value"), [("rounds", 0), ("hold_out", 1.0), ("partition", -1)])
def test_a_number_out_of_range_is_one_line(run, field, value):
    damaged(json.loads(run.as_json()) | {field: value}, field)


@pytest.mark.parametrize("part", ["inputs", "forgetting", "spec"])
def test_damage_within_a_part_is_one_line(run, part):
    table = json.loads(run.as_json())
    for key in table[part]:
        for wrong in (None, "x", -1, {"a": []}, [[]]):
            changed = copy.deepcopy(table)
            changed[part][key] = wrong
            if changed == table or key == "dense":  # a tensor may have no axis
                continue
            damaged(changed, f"{part}.{key} = {wrong!r}")
        changed = copy.deepcopy(table)
        changed[part]["more"] = changed[part].pop(key)
        damaged(changed, f"{part}.{key}")


def test_rubbish_is_one_line():
    for text in ("", "x", "[]", "{}", '{"a": 1, "a": 2}', '{"seed": NaN}'):
        with pytest.raises(InputError):
            RunDescription.read(text)


def damaged(table, what):
    with pytest.raises(InputError) as raised:
        pytest.fail(f"{what} was taken: {RunDescription.read(json.dumps(table))}")
    assert "\n" not in str(raised.value), what


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"training": {"gradient": "zeroth-order"}}, r"training.gradient = 'zeroth-order'"),
        ({"sparsity": {"method": "heterofl"}}, r"sparsity.method = 'heterofl'"),
        (
            {"sparsity": {"method": "mest-ems", "scheme": "channel", "mutation": "client"}},
            "grows whole channels within a round",
        ),
    ],
)
def test_what_only_nodes_with_torch_train_is_one_line(sections, named):
    task = Task(config_of(**sections))
    with pytest.raises(InputError, match=named) as refused:
        describe_run(task, task.plan(10**9, "rpi-4"), 1)
    assert "\n" not in str(refused.value)
