"""What every method does, ours and its rivals: one contract, on the digits.

Density is held, budgets are kept, a seed gives its bits again, on any number of workers and after
a resume, updates are accepted, and the model learns.
"""

import logging

import pytest
from tiny_run import (
    StopAfter,
    assert_same_run,
    budget_for,
    read_rows,
    read_summary,
    start,
    tiny_config,
)

from mest_fed.kernels import torch_threads
from mest_fed.simulation.rounds import Interrupted
from mest_fed.simulation.simulate import open_run
from mest_fed.simulation.trackers.progress import Observers
from mest_fed.sparsity import METHODS, build_method

ROUNDS = 4


def of_method(name, place=None, **sections):
    """Return the settings of a method, on clients where it needs their gradients."""
    place = place or ("client" if METHODS.find(name).needs_dense_gradient else "server")
    return {"sparsity": {"method": name, "mutation": place}} | sections


#: Every registered method; bundles of settings that papers have names for; ours on clients.
CASES = {name: of_method(name) for name in METHODS} | {
    "fedprox": of_method("dense", training={"proximal": 0.1}),
    "fedpaq": of_method("dense", wire={"upload": "int8"}),
    "top-k, dense": of_method("dense", wire={"upload": "topk:0.1"}),
    "top-k, sparse": of_method("mest-em", wire={"upload": "topk:0.1"}),
    "feddst of another alpha": of_method("feddst:0.1", "client"),
    "feddst in 8 bits": of_method("feddst", wire={"upload": "int8"}),
    "mest-em on clients": of_method("mest-em", "client"),
    "mest-ems on clients": of_method("mest-ems", "client"),
    "mest-ems without the unforgettable": of_method("mest-ems", forgetting={"fraction": 0.3}),
}
every_case = pytest.mark.parametrize("name", CASES)


def config_of(name, **sections):
    base = {
        "run": {"rounds": ROUNDS},
        "data": {"partition": "iid"},
        "training": {"local_epochs": 2, "learning_rate": 0.1},
        "server": {"evaluate_every": ROUNDS, "evaluate_clients_every": 0},
    }
    for section, keys in [*CASES[name].items(), *sections.items()]:
        base[section] = base.get(section, {}) | keys
    return tiny_config(**base)


def method_of(config):
    return build_method(config.sparsity.method, config.sparsity.density)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder of a case's run, which is made once."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("run") / "run"
            start(made[name], config_of(name))
        return made[name]

    return of


@every_case
def test_density_is_held_and_ends_at_the_target(name, runs):
    peak = method_of(config_of(name)).peak
    densities = [row["density"] for row in read_rows(runs(name), "rounds")]
    assert densities[-1] == densities[0]
    assert all(densities[0] <= each <= densities[0] * peak + 0.002 for each in densities)
    if "mest-ems" not in name:
        assert len(set(densities)) == 1


@every_case
def test_all_updates_are_accepted_and_plans_are_within_budgets(name, runs):
    summary = read_summary(runs(name))
    counted = ("clients_failed", "clients_rejected", "over_budget", "out_of_memory")
    assert {key: summary[key] for key in counted} == dict.fromkeys(counted, 0)
    assert summary["clients_trained"] == 3 * ROUNDS
    for tier in summary["tiers"]:
        assert 0 < tier["predicted_peak_bytes"] <= tier["budget_bytes"]
        assert tier["shortfall_bytes"] == 0


@every_case
def test_it_trains(name, runs):
    rows = read_rows(runs(name), "rounds")
    assert rows[-1]["metrics"]["loss"] < rows[0]["metrics"]["loss"]
    assert rows[-1]["train_loss"] < rows[1]["train_loss"]


#: Whose clients keep something from round to round, or whose first masks are the clients'.
STATEFUL = ("snip", "top-k, sparse", "feddst in 8 bits")


@pytest.mark.parametrize(
    "name", [pytest.param(it, marks=[] if it in STATEFUL else pytest.mark.soak) for it in CASES]
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(name, runs, tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path / "run", config_of(name), display=StopAfter(ROUNDS // 2))
    start(tmp_path / "run", resume=True)
    assert_same_run(runs(name), tmp_path / "run")


@pytest.mark.parametrize(
    ("smaller", "than"), [("fedpaq", "dense"), ("top-k, dense", "dense"), ("top-k, sparse", "set")]
)
def test_updates_are_smaller_where_the_codec_says_so(smaller, than, runs):
    sent = {case: read_summary(runs(case))["bytes_up"] for case in (smaller, than)}
    assert sent[smaller] < 0.4 * sent[than]


@pytest.mark.ray
@pytest.mark.soak
@every_case
def test_two_workers_give_the_same_bits_within_a_measured_budget(name, session, tmp_path):
    logging.getLogger("flwr").setLevel(logging.ERROR)
    method = method_of(config_of(name))
    budget = budget_for(0.2 if method.sparse else 1.0, **CASES[name]) * 5 // 4
    if method.scores_first:  # a dense step by torch
        budget += 3_000_000
    config = config_of(name, run={"rounds": 3}, fleet={"budgets": f"rpi-4:{budget}"})
    for workers in (0, 2):
        with torch_threads(1):
            open_run("tiny", config, tmp_path / str(workers), observer=Observers()).run(workers)
    serial, shared = (read_summary(tmp_path / workers) for workers in "02")
    assert serial["model_sha256"] == shared["model_sha256"]
    assert serial["over_budget"] == shared["over_budget"] == 0
    for tier in serial["tiers"]:
        assert 0 < tier["measured_peak_bytes"] <= tier["budget_bytes"]
