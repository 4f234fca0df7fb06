"""Measured peaks of a run: who measures, what is kept, and that over budget is a failed round."""

import json
from types import SimpleNamespace

import pytest
from tiny_run import StopAfter, read_rows, read_summary, tiny_config

from mest_fed.errors import InputError
from mest_fed.schema import FailureKind
from mest_fed.simulation import peak_measurement
from mest_fed.simulation.fleet import Fleet
from mest_fed.simulation.peak_measurement import PeakMeasurement, measure_plans
from mest_fed.simulation.simulate import Interrupted, open_run
from mest_fed.simulation.trackers.progress import Observers
from mest_fed.task import Task

FLEET = {"mix": "rpi-4:1, rpi-5:1", "budgets": "rpi-4:40MB, rpi-5:80MB"}
CONFIG = tiny_config(fleet=FLEET | {"devices": 12})


class FakeMeasurement(PeakMeasurement):
    """Finds that every plan needs 50 MB."""

    def results(self):
        return dict.fromkeys(self.plans, 50000000)

    def stop(self):
        pass


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Return the plans that measurements were asked for; the cache is the test's own."""
    monkeypatch.setenv("MEST_FED_CACHE", str(tmp_path / "cache"))
    asked = []

    def start(_config, _partitions, _kernels, plans):
        asked.append(list(plans))
        return FakeMeasurement(None, plans)

    monkeypatch.setattr(PeakMeasurement, "start", start)
    return asked


def run(folder, config=CONFIG, *, resume=False, display=None):
    observer = display or Observers()
    return open_run("tiny", config, folder, resume=resume, observer=observer).run(0)


def test_over_budget_is_a_failed_round_and_counted(tmp_path, asked):
    folder = run(tmp_path / "run")
    rows, summary = read_rows(folder, "clients"), read_summary(folder)
    small = [row for row in rows if row["device"] == "rpi-4"]
    assert small
    for row in small:
        assert (row["status"], row["presented"]) == ("failed", 0)
        assert row["failure"] in (FailureKind.OVER_BUDGET, FailureKind.AWAY)
    over = [row for row in small if row["failure"] == FailureKind.OVER_BUDGET]
    assert summary["over_budget"] == len(over) > 0
    assert any(row["status"] == "ok" for row in rows if row["device"] == "rpi-5")
    tiers = {tier["profile"]: tier for tier in summary["tiers"]}
    assert {tier["measured_peak_bytes"] for tier in tiers.values()} == {50_000_000}


def test_plans_of_one_shape_are_measured_once_and_cached(tmp_path, asked):
    run(tmp_path / "first")
    assert [len(plans) for plans in asked] == [1]  # both devices train in the same way
    run(tmp_path / "second")
    assert [len(plans) for plans in asked] == [1, 0]
    other = tiny_config(fleet=FLEET | {"devices": 12}, training={"batch_size": 16})
    run(tmp_path / "third", other)
    assert [len(plans) for plans in asked] == [1, 0, 1]


def test_a_resumed_run_holds_devices_to_the_same_peaks(tmp_path, asked, monkeypatch):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", display=StopAfter(1))
    before = (tmp_path / "run" / "memory.json").read_bytes()
    monkeypatch.setenv("MEST_FED_CACHE", str(tmp_path / "another"))
    run(tmp_path / "run", None, resume=True)
    assert [len(plans) for plans in asked] == [1, 0]
    assert (tmp_path / "run" / "memory.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", '{"a": "b"}'])
def test_a_damaged_table(tmp_path, asked, text):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", display=StopAfter(1))
    (tmp_path / "run" / "memory.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"memory\.json"):
        run(tmp_path / "run", None, resume=True)


def test_a_cache_that_cannot_be_written_is_none(tmp_path, asked, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MEST_FED_CACHE", str(tmp_path / "file"))
    folder = run(tmp_path / "run")
    assert list(json.loads((folder / "memory.json").read_text()).values()) == [50_000_000]


@pytest.mark.slow
def test_a_real_measurement_covers_every_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("MEST_FED_CACHE", str(tmp_path / "cache"))
    config = tiny_config(fleet=FLEET | {"devices": 12}, run={"rounds": 1})
    summary = read_summary(run(tmp_path / "run", config))
    assert summary["over_budget"] == 0
    for tier in summary["tiers"]:
        assert 0 < tier["measured_peak_bytes"] <= tier["budget_bytes"]


def test_a_learning_rate_that_makes_a_run_diverge_does_not_end_a_measurement(monkeypatch):
    def measured(work, warm_up):
        work()
        return SimpleNamespace(added=1)

    monkeypatch.setattr(peak_measurement, "measure", measured)
    model, training = {"name": "cnn2", "width": 0.25}, {"learning_rate": 1e30, "batch_size": 16}
    task = Task(tiny_config(task={"name": "regression"}, model=model, training=training))
    assert list(measure_plans(task, [Fleet.of(task).tiers[0].plan])) == [1]
