"""Measured peaks of a run: who measures, what is kept, and that over budget is a failed round."""

import json
from types import SimpleNamespace

import pytest
from tiny_run import StopAfter, read_rows, read_summary, tiny_config

from mest_fed.errors import InputError
from mest_fed.memory import footprint
from mest_fed.memory.planner import needed
from mest_fed.schema import FailureKind
from mest_fed.simulation import peak_measurement
from mest_fed.simulation.fleet import Fleet
from mest_fed.simulation.peak_measurement import PeakMeasurement, measure_plans
from mest_fed.simulation.rounds import Interrupted
from mest_fed.simulation.simulate import open_run
from mest_fed.simulation.trackers.progress import Observers
from mest_fed.task import Task

FLEET = {"mix": "rpi-4:1, rpi-5:1", "budgets": "rpi-4:40MB, rpi-5:80MB"}
CONFIG = tiny_config(fleet=FLEET | {"devices": 12})
ROOMY = FLEET | {"devices": 12, "budgets": "rpi-4:60MB, rpi-5:80MB"}
ENOUGH = tiny_config(fleet=ROOMY)


class FakeMeasurement(PeakMeasurement):
    """Finds that every plan needs 50 MB."""

    def results(self):
        return dict.fromkeys(self.plans, 50000000)

    def stop(self):
        pass


class Larger(PeakMeasurement):
    """Finds that every plan needs 60% more than was predicted."""

    def results(self):
        return {plan: plan.footprint.total * 8 // 5 for plan in self.plans}

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


def run(folder, config=ENOUGH, *, resume=False, display=None):
    observer = display or Observers()
    return open_run("tiny", config, folder, resume=resume, observer=observer).run(0)


def test_over_budget_is_a_failed_round_and_counted(tmp_path, asked):
    folder = run(tmp_path / "run", CONFIG)
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


@pytest.mark.soak
def test_plans_of_one_shape_are_measured_once_and_cached(tmp_path, asked):
    run(tmp_path / "first")
    assert [len(plans) for plans in asked] == [1]  # both devices train in the same way
    run(tmp_path / "second")
    assert [len(plans) for plans in asked] == [1, 0]
    other = tiny_config(fleet=ROOMY, training={"batch_size": 16})
    run(tmp_path / "third", other)
    assert [len(plans) for plans in asked] == [1, 0, 1]


@pytest.mark.soak
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


@pytest.fixture
def larger(tmp_path, monkeypatch):
    """Have every plan measured as larger than predicted."""
    monkeypatch.setenv("MEST_FED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(PeakMeasurement, "start", lambda *given: Larger(None, given[-1]))


def tight(**sections):
    """Return a run whose rpi-4 have a budget that the requested plan just fits as predicted."""
    planner = Task(tiny_config(**sections)).planner()
    budget = needed(footprint(planner.trace, planner.setting, planner.limits.shape).total)
    fleet = {"mix": "rpi-4:1, rpi-5:1", "budgets": f"rpi-4:{budget}B", "devices": 12}
    return tiny_config(**sections, fleet=fleet), budget


class Notes(StopAfter):
    """Keeps what it is told beside rounds."""

    def __init__(self, number=99):
        super().__init__(number)
        self.notes = []

    def note(self, text):
        self.notes.append(text)

    def phase(self, text):
        pass

    def task_ended(self, kind):
        pass

    def tasks_done(self, rows):
        pass


@pytest.mark.soak
def test_a_plan_that_is_over_its_budget_as_measured_is_made_anew(tmp_path, larger):
    config, budget = tight()
    first = Task(config).fleet_plans()["rpi-4"]
    notes = Notes()
    summary = read_summary(run(tmp_path / "run", config, display=Observers(notes)))
    assert summary["over_budget"] == 0
    small, large = sorted(summary["tiers"], key=lambda tier: tier["budget_bytes"])
    assert small["budget_bytes"] == budget == first.budget
    assert small["predicted_peak_bytes"] < first.footprint.total
    assert small["measured_peak_bytes"] == small["predicted_peak_bytes"] * 8 // 5 <= budget
    assert small["shortfall_bytes"] == first.footprint.total * 8 // 5 - first.footprint.total
    assert "Planned anew" in small["plan"]
    assert (large["micro_batch"], large["shortfall_bytes"]) == (first.micro_batch, 0)
    (said,) = notes.notes
    assert said.startswith("rpi-4: the plan's measured peak")
    assert "planned anew" in said
    assert said in (tmp_path / "run" / "run.log").read_text(encoding="utf-8")


@pytest.mark.soak
def test_a_resumed_run_keeps_the_plans_that_were_made_anew(tmp_path, larger, monkeypatch):
    config, _ = tight()
    whole = run(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", config, display=StopAfter(1))
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    monkeypatch.setenv("MEST_FED_CACHE", str(tmp_path / "another"))
    resumed = run(tmp_path / "run", None, resume=True)
    for key in ("tiers", "model_sha256", "over_budget"):
        assert read_summary(resumed)[key] == read_summary(whole)[key]


@pytest.mark.soak
def test_a_budget_in_which_no_plan_fits_as_measured(tmp_path, larger):
    planner = Task(tiny_config()).planner()
    fleet = {"mix": "rpi-4:1, rpi-5:1", "budgets": f"rpi-4:{planner.smallest().budget}B"}
    notes = Notes()
    folder = run(tmp_path / "run", tiny_config(fleet=fleet), display=Observers(notes))
    assert read_summary(folder)["over_budget"] > 0
    (said,) = notes.notes
    enough = int(said.rpartition(" bytes would do")[0].rpartition(" ")[2])
    fleet["budgets"] = f"rpi-4:{enough}B"
    folder = run(tmp_path / "enough", tiny_config(fleet=fleet), display=Observers(Notes()))
    assert read_summary(folder)["over_budget"] == 0


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
