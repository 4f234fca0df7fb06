"""Asynchronous, semi-synchronous and over-selected runs, from configuration to report."""

import gc

import pytest
from test_simulate_resume import stopped
from tiny_run import StopAfter, assert_same_run, read_rows, start, tiny_config

from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.rounds import Interrupted
from mest_fed.simulation.simulate import open_run

RUN = {"rounds": 6, "seed": 5, "checkpoint_every": 100}
FLEET = {"devices": 12, "mix": "rpi-4:2, rpi-zero-2w:1, jetson-nano:1"}
MODES = {
    "buffered": {"mode": "buffered", "concurrency": 5, "buffer": 3},
    "semi-sync": {"mode": "semi-sync", "concurrency": 5, "period": 0.004},
    "first": {"clients_per_round": 3, "over_selection": 1.7},
}


def config_of(mode):
    return tiny_config(
        run=RUN,
        fleet=FLEET,
        sparsity={"method": "mest-ems", "density": 0.2, "period": 1 / 3},
        wire={"upload": "int8", "download": "fp16"},
        forgetting={"fraction": 0.3, "start": 0.5},
        server=MODES[mode] | {"evaluate_clients_every": 2, "evaluate_clients": 3},
    )


@pytest.fixture(scope="module", params=MODES)
def whole(request, tmp_path_factory):
    config = config_of(request.param)
    return request.param, config, start(tmp_path_factory.mktemp("whole") / "run", config)


def test_a_run(whole):
    mode, _, folder = whole
    run = load_run(folder)
    rows = read_rows(folder, "clients")
    trained = [row for row in rows if row["status"] == "ok"]
    assert all(row["train_seconds"] > 0 and row["energy_joules"] > 0 for row in trained)
    stale = {row["staleness"] for row in trained}
    statuses = {row["status"] for row in rows}
    if mode == "first":
        assert stale == {0}
        assert "surplus" in statuses
        assert all(row["trained"] == 3 for row in read_rows(folder, "rounds")[1:])
        surplus = next(row for row in rows if row["status"] == "surplus")
        assert surplus["energy_joules"] > 0
        assert surplus["bytes_up"] > 0
    else:
        assert max(stale) > 0
    assert run.summary.clients_trained == len(trained)
    assert run.summary.rounds == 6


@pytest.mark.soak
@pytest.mark.parametrize("number", [0, 3])
def test_a_run_that_was_stopped(whole, tmp_path, number):
    _, config, uninterrupted = whole
    folder = stopped(tmp_path / "run", config, StopAfter(number))
    start(folder, resume=True)
    assert_same_run(folder, uninterrupted)


@pytest.mark.soak
def test_a_run_that_was_stopped_twice(whole, tmp_path):
    _, config, uninterrupted = whole
    folder = stopped(tmp_path / "run", config, StopAfter(2))
    with pytest.raises(Interrupted):
        start(folder, resume=True, display=StopAfter(4))
    start(folder, resume=True)
    assert_same_run(folder, uninterrupted)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_one_worker_gives_the_same_run(tmp_path, monkeypatch):
    config = config_of("buffered")
    alone = start(tmp_path / "alone", config)
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    folder = open_run("tiny", config, tmp_path / "worker", resume=False).run(1)
    gc.collect()
    assert_same_run(folder, alone)
