"""The benchmark of a million devices: rows from what was seen of a run, the picture, a tiny run."""

import json
import os
from functools import partial

import fleet_scale
import fleet_scale_case
import fleet_scale_picture
import pytest
from fleet_scale_case import Case, Course
from process_tree import DRIVER, HELPERS, RAY, WORKERS, Sample, TreeMeter, kind_of

from mest_fed.errors import InputError


def course(seconds, *, samples=(), start=100.0):
    ends = [start]
    for each in seconds:
        ends.append(ends[-1] + each)
    rounds = [
        {"at": end, "round": number, "trained": 8, "failed": 2, "accuracy": 0.5}
        for number, end in enumerate(ends)
    ]
    return Course(rounds, list(samples), load=1.0)


def gigabytes(at, driver, workers, ray, *, cpu=0.0):
    sizes = {DRIVER: driver, WORKERS: workers, RAY: ray}
    return Sample(at, {kind: int(size * 1e9) for kind, size in sizes.items()}, cpu)


def test_a_row_by_hand():
    samples = [
        gigabytes(99.0, 9.0, 0.0, 1.0),  # while it starts
        gigabytes(104.0, 0.5, 1.0, 2.0),  # round 1
        gigabytes(110.9, 0.6, 1.0, 3.0, cpu=20.0),  # round 2
        gigabytes(114.0, 0.5, 1.2, 1.0, cpu=32.0),  # round 4
    ]
    seen = course([9.0, 2.0, 2.5, 1.0], samples=samples)
    row = fleet_scale.row_of(Case(1_000_000, 10, 4, 2), seen, 4.0)
    assert row["ours_runs"] == [2.0, 2.5, 1.0]  # without the first
    assert (row["ours"], row["peer"], row["ratio"]) == (2.0, 4.0, 2.0)
    assert row["device_ms"] == 200.0
    # 12 s in 3.1 of 5.5 s, which are 3 rounds of 10 devices.
    assert row["cpu_device_ms"] == pytest.approx(12 / (3.1 / 5.5) / 3 / 10 * 1e3, abs=1e-3)
    assert (row["peak_gb"], row["peak_with_ray_gb"], row["peak_ever_gb"]) == (1.7, 4.6, 9.0)
    assert (row["peak_first_rounds_gb"], row["peak_last_rounds_gb"]) == (1.6, 1.7)
    assert row["memory_by_round_gb"]["4"] == {DRIVER: 0.5, WORKERS: 1.2}
    assert "3" not in row["memory_by_round_gb"]


def test_what_a_case_is_compared_with(monkeypatch):
    seconds = {1000: 4.0, 100: 0.5, 10: 0.2}
    monkeypatch.setattr(
        fleet_scale,
        "run_case",
        lambda case: course([seconds[case.cohort]] * case.rounds, samples=()),
    )
    cases = fleet_scale.cases_of({"cohort": 1000, "rounds": 8, "workers": 2})
    rows = list(fleet_scale.rows(cases))
    assert [row["peer"] for row in rows] == [4.0, 0.4, 0.04, 0.5]
    assert [row["population"] for row in rows] == [1_000_000] * 3 + [1000]


def test_processes_by_what_they_are_for():
    assert kind_of(["python", "x.py"], is_root=True) == DRIVER
    assert kind_of(["ray::FleetWorker.run"], is_root=False) == WORKERS
    assert kind_of(["/lib/ray/core/src/ray/raylet/raylet"], is_root=False) == RAY
    assert (
        kind_of(["python", "-m", "mest_fed.simulation.peak_measurement"], is_root=False) == HELPERS
    )


def test_the_meter_sees_this_process():
    with TreeMeter(os.getpid(), interval=0.001) as meter:
        while not meter.samples:
            pass
    assert 1e6 < meter.samples[0].sizes[DRIVER] < 1e11
    assert meter.samples[0].cpu > 0


def test_the_picture(tmp_path):
    samples = [gigabytes(100.5 + n, 0.5, 1.0, 2.0) for n in range(4)]
    rows = [
        fleet_scale.row_of(Case(population, cohort, 4, 2), course([1.0] * 4, samples=samples), 2.0)
        for population, cohort in ((1_000_000, 100), (1_000_000, 10), (1000, 10))
    ]
    fleet_scale_picture.draw(rows, tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert "1,000,000 devices" in text
    assert "workers" in text


def test_wrong_input():
    with pytest.raises(InputError, match="positive integer"):
        fleet_scale.main(["--cohort", "0"])


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
def test_a_tiny_run(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_scale, "MILLION", 50)
    monkeypatch.setattr(fleet_scale, "FEW_DEVICES", 20)
    monkeypatch.setattr(fleet_scale, "cases_of", lambda _: [Case(50, 4, 2, 1)])
    often = partial(TreeMeter, interval=0.01)  # such rounds take less than the usual interval
    monkeypatch.setattr(fleet_scale_case, "TreeMeter", often)
    fleet_scale.main(["--json", str(tmp_path / "rows.json")])
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["runs"] == 1
    assert row["peak_gb"] > 0.1
