"""Runs whose compiled steps store planes as bfloat16: one result, however they are carried out."""

import gc
import json
import logging

import pytest
from tiny_run import (
    StopAfter,
    assert_same_run,
    read_rows,
    read_summary,
    start,
    tiny_config,
)

from mest_fed.runtime import native_table
from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.simulation.rounds import Interrupted
from mest_fed.simulation.simulate import open_run
from mest_fed.task import Task
from mest_fed.training.model_step import ModelStep
from mest_fed.training.programs import Programs

pytestmark = pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")


def config_of(saved="bf16"):
    return tiny_config(run={"rounds": 2}, memory={"saved": saved})


def types_of(program):
    return {it.dtype for it in program.buffers}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A run whose steps store planes of bfloat16, and whose evaluations none."""
    found, find = [], Programs._find
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "_find", lambda *them: found.append(find(*them)) or found[-1])
        folder = start(tmp_path_factory.mktemp("bf16") / "run", config_of())
    steps = [it for it in found if isinstance(it, ModelStep)]
    others = [it for it in found if it not in steps]
    assert min(len(steps), len(others)) > 2
    assert None not in others
    assert all("bfloat16" in types_of(it.step.program) for it in steps)
    assert not any("bfloat16" in types_of(it._forward.program) for it in others)
    assert not (folder / "run.log").exists()
    return folder


def test_a_resumed_run_has_the_same_bits(narrow, tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path / "run", config_of(), display=StopAfter(1))
    assert_same_run(start(tmp_path / "run", resume=True), narrow)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_have_the_same_bits(narrow, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    logging.getLogger("server").setLevel(logging.ERROR)
    folder = tmp_path / "run"
    open_run("tiny", config_of(), folder).run(workers)
    gc.collect()
    assert_same_run(folder, narrow)


def test_a_run_differs_from_float32_by_rounding(narrow, tmp_path):
    other = start(tmp_path / "fp32", config_of("fp32"))
    for mine, theirs in zip(read_rows(narrow, "rounds"), read_rows(other, "rounds"), strict=True):
        for key in ("loss", "client_loss"):
            if theirs.get(key) is not None:
                assert mine[key] == pytest.approx(theirs[key], rel=0.05)
    assert read_summary(narrow)["model_sha256"] != read_summary(other)["model_sha256"]


def test_a_device_plans_what_it_trains():
    plans = {it: Task(config_of(it)).plan(10**9, "test") for it in ("fp32", "bf16")}
    assert plans["bf16"].memory.saved == "bf16"
    narrow, wide = (plans[it].footprint for it in ("bf16", "fp32"))
    assert narrow.activations < 0.7 * wide.activations
    assert narrow.total < wide.total
    assert json.loads(plans["bf16"].as_json())["parts"] == narrow.parts()
