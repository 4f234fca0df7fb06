"""Masks that clients score before the first round, in a whole run."""

import pytest
from tiny_run import read_rows, read_summary, start, tiny_config

import mest_fed.client.scoring
import mest_fed.server.first_masks
from mest_fed.errors import BudgetError, MestFedError
from mest_fed.task_scores import scoring_plan

SMALL = 20_000_000


def config_of(**sections):
    return tiny_config(sparsity={"method": "snip"}, **sections)


def needs_more_than_small(task, budget):
    """Stand for a model whose dense pass the small budget does not hold."""
    if budget <= SMALL:
        raise BudgetError(f"scores of dense weights: {budget} is too little")
    return scoring_plan(task, budget)


@pytest.fixture
def _a_large_dense_pass(monkeypatch):
    for module in (mest_fed.client.scoring, mest_fed.server.first_masks):
        monkeypatch.setattr(module, "scoring_plan", needs_more_than_small)


@pytest.mark.usefixtures("_a_large_dense_pass")
def test_devices_whose_budget_holds_no_dense_pass_are_not_asked(tmp_path):
    fleet = {"mix": "rpi-4:1, rpi-3b-plus:1", "budgets": f"rpi-3b-plus:{SMALL}"}
    start(tmp_path / "run", config_of(fleet=fleet))
    summary = read_summary(tmp_path / "run")
    assert summary["clients_trained"] == 9
    devices = {row["device"] for row in read_rows(tmp_path / "run", "clients")}
    assert devices == {"rpi-4", "rpi-3b-plus"}  # they train all the same


@pytest.mark.usefixtures("_a_large_dense_pass")
def test_without_any_device_that_can_the_run_ends_with_the_reason(tmp_path):
    with pytest.raises(MestFedError, match=r"'snip': no device gave scores.*too little"):
        start(tmp_path / "run", config_of(fleet={"budgets": f"rpi-4:{SMALL}"}))


def test_what_scoring_sends_and_takes_counts_in_the_first_round(tmp_path):
    for method in ("snip", "static"):
        config = tiny_config(sparsity={"method": method})
        start(tmp_path / method, config)
    snip, static = (read_rows(tmp_path / it, "rounds")[1] for it in ("snip", "static"))
    weights = sum(each["weights"] for each in read_summary(tmp_path / "snip")["layers"])
    assert snip["bytes_down"] - static["bytes_down"] > 3 * 4 * weights
    assert snip["bytes_up"] - static["bytes_up"] > 3 * 4 * 0.9 * weights
    assert snip["virtual_seconds"] > static["virtual_seconds"]


def test_layers_that_training_keeps_frozen_are_scored_too(tmp_path):
    config = config_of(memory={"frozen": 2}, model={"name": "resnet8"}, run={"rounds": 1})
    start(tmp_path / "run", config)
    assert read_summary(tmp_path / "run")["clients_failed"] == 0
