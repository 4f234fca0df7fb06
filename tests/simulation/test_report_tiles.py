from dataclasses import replace

import pytest
from example_run import example_files, write_files

from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.tables import headline_tiles


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    contents = example_files(rounds=1, tiers=1, clients_per_round=2, losses=False)
    return load_run(write_files(tmp_path_factory.mktemp("run"), contents))


def tiles_of(run, **changes):
    changed = replace(run, summary=replace(run.summary, **changes))
    return {tile.label: tile for tile in headline_tiles(changed)}


def test_values_and_their_basis(run):
    tiles = tiles_of(
        run,
        final_accuracy=0.9342,
        achieved_density=0.0499,
        bytes_up=1_000_000,
        bytes_down=2_000_000,
        virtual_seconds=12_000.0,
        wall_seconds=60.0,
        energy_joules=7200.0,
        clients_trained=2,
        clients_failed=1,
        over_budget=0,
    )
    assert {label: (tile.value, tile.basis) for label, tile in tiles.items()} == {
        "Final accuracy": ("93.4%", "measured"),
        "Achieved density": ("4.99%", "measured"),
        "Traffic": ("3 MB", "measured"),
        "Updates accepted": ("2", "measured"),
        "Virtual time": ("3 h 20 min", "modelled"),
        "Wall time": ("1 min 00 s", "measured"),
        "Energy": ("7.2 kJ", "modelled"),
        "Over budget": ("0", "measured"),
    }
    assert tiles["Updates accepted"].notes == ("of 2 tasks", "none was lost")
    assert tiles["Wall time"].notes[-1] == "200 times faster than virtual"
    assert tiles["Energy"].notes == ("2 Wh, whole fleet", "3.6 kJ per accepted update")


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (750_000, "training: 3 MB, 10 times less than dense fp32 (30 MB)"),
        (15_000_000, "training: 60 MB, 2 times more than dense fp32 (30 MB)"),
        (7_500_000, "training: 30 MB, about as much as dense fp32 (30 MB)"),
    ],
)
def test_traffic_is_compared_with_the_dense_model(run, sent, words):
    assert len(run.tasks) == 2  # so four transfers
    tasks = tuple(replace(task, bytes_up=sent, bytes_down=sent) for task in run.tasks)
    tiles = tiles_of(replace(run, tasks=tasks), dense_bytes=7_500_000)
    tile = tiles["Traffic"]
    assert tile.notes[1] == words


def test_no_traffic_is_compared_with_nothing(run):
    tasks = tuple(replace(task, bytes_up=0, bytes_down=0) for task in run.tasks)
    tiles = tiles_of(replace(run, tasks=tasks), bytes_up=0, bytes_down=0)
    assert tiles["Traffic"].notes == ("0 B up, 0 B down",)


def test_clients_stand_in_for_a_central_test_set(run):
    clients = replace(run.summary.final_client_accuracy, median=0.5, p10=0.25, p90=0.75)
    rounds = (*run.rounds[:-1], replace(run.rounds[-1], client_accuracy=clients))
    tiles = tiles_of(replace(run, rounds=rounds), final_accuracy=None)
    assert tiles["Final accuracy"].value == "50%"
    assert tiles["Final accuracy"].notes == (
        "median of clients; no central test set",
        "p10 25%, p90 75%",
    )


def test_no_accuracy_at_all_is_said(run):
    bare = replace(run, rounds=tuple(replace(row, client_accuracy=None) for row in run.rounds))
    tile = tiles_of(bare, final_accuracy=None)["Final accuracy"]
    assert (tile.value, tile.notes) == ("—", ("not evaluated in this run",))


def test_clients_that_evaluated_another_round_than_the_model_s_say_which(run):
    last = replace(run.rounds[-1], client_accuracy=None)
    clients = replace(run.summary.final_client_accuracy, median=0.5)
    rounds = (*run.rounds[:-2], replace(run.rounds[-2], client_accuracy=clients), last)
    tile = tiles_of(replace(run, rounds=rounds))["Final accuracy"]
    assert tile.notes[0] == f"clients, round {rounds[-2].round}: median 50%"


def test_a_diverged_run_has_no_final_value(run):
    tile = tiles_of(run, final_accuracy=None, diverged_round=1)["Final accuracy"]
    assert (tile.value, tile.alarm) == ("—", True)
    assert tile.notes == ("not finite: the run diverged",)


def test_a_simulation_slower_than_its_devices_claims_no_speed(run):
    tile = tiles_of(run, virtual_seconds=10.0, wall_seconds=20.0)["Wall time"]
    assert tile.notes == ("of the simulation itself",)


def test_over_budget_alarms(run):
    assert tiles_of(run, over_budget=3)["Over budget"].alarm
    assert not tiles_of(run, over_budget=0)["Over budget"].alarm


def test_a_run_without_rounds_or_updates_divides_by_nothing(run):
    tiles = tiles_of(run, rounds=0, clients_trained=0, wall_seconds=0.0)
    assert len(tiles["Virtual time"].notes) == len(tiles["Energy"].notes) == 1
