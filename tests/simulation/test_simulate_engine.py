"""Runs whose clients train by compiled programs: one result, however the run is carried out."""

import gc
import json
import logging
from html import unescape

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
from mest_fed.simulation.report import write_report
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.render import render_page
from mest_fed.simulation.rounds import Interrupted
from mest_fed.simulation.simulate import open_run
from mest_fed.task import Task
from mest_fed.training.programs import Programs

pytestmark = pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")

#: Masks that clients change, statistics of batches, data that is left out, differences kept.
SECTIONS = {
    "run": {"rounds": 2, "seed": 5},
    "model": {"norm": "batch"},
    "sparsity": {"method": "mest-em", "mutation": "client", "density": 0.2},
    "forgetting": {"fraction": 0.3, "start": 0.5},
    "wire": {"upload": "int8"},
    "fleet": {"devices": 40},
}


def config_of(engine, **sections):
    merged = SECTIONS | sections
    return tiny_config(**merged | {"training": {"engine": engine, **merged.get("training", {})}})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A run whose steps and evaluations all have programs."""
    found, find = [], Programs._find
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "_find", lambda *them: found.append(find(*them)) or found[-1])
        folder = start(tmp_path_factory.mktemp("engine") / "run", config_of("compiled"))
    assert len(found) > 10
    assert None not in found
    return folder


def test_a_run_is_that_of_torch_but_for_rounding(compiled, tmp_path):
    other = start(tmp_path / "torch", config_of("torch"))
    assert not (compiled / "run.log").exists()
    pairs = zip(read_rows(compiled, "rounds"), read_rows(other, "rounds"), strict=True)
    for mine, theirs in pairs:
        for key in ("loss", "client_loss"):
            if theirs.get(key) is not None:
                assert mine[key] == pytest.approx(theirs[key], rel=0.02)
    one, two = read_summary(compiled), read_summary(other)
    assert one["clients_trained"] == two["clients_trained"] == 6
    assert one["model_sha256"] != two["model_sha256"]  # another engine, other roundings


def test_a_resumed_run_has_the_same_bits(compiled, tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path / "run", config_of("compiled"), display=StopAfter(1))
    assert_same_run(start(tmp_path / "run", resume=True), compiled)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_workers_have_the_same_bits(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    logging.getLogger("server").setLevel(logging.ERROR)
    folder = tmp_path / "run"
    open_run("tiny", config_of("compiled"), folder).run(2)
    gc.collect()
    assert_same_run(folder, compiled)


REASONS = {
    "optimizer": (
        {"training": {"optimizer": "torch.optim:RMSprop"}},
        "torch trains; training.optimizer = 'torch.optim:RMSprop' is not allowed; "
        "allowed: in a program: sgd, adam, adamw",
    ),
    "kernels": (
        {"training": {"kernels": "dense"}},
        "torch trains, as training.kernels = 'dense' asks",
    ),
    "memory": (
        {"memory": {"recompute": "segments"}},
        "torch trains where a plan recomputes segments or packs otherwise than as bf16: rpi-4",
    ),
    "fp16": (
        {"memory": {"saved": "fp16"}},
        "torch trains where a plan recomputes segments or packs otherwise than as bf16: rpi-4",
    ),
    "no planes": (
        {"memory": {"saved": "bf16"}, "model": {"name": "mlp"}},
        "torch trains; memory.saved = 'bf16': a program of this model keeps all as fp32 "
        "(it has no planes of convolutions)",
    ),
    "not on planes": (
        {"memory": {"saved": "bf16"}, "model": {"name": "cnn2"}},
        "torch trains; memory.saved = 'bf16': a program of this model keeps all as fp32 (conv2d)",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_task_says_why_torch_trains(case):
    sections, reason = REASONS[case]
    task = Task(config_of("compiled", **sections))
    plans = {"rpi-4": task.plan(10**9, "test")}
    assert task.why_torch(plans) == f"training.engine = 'compiled': {reason}"
    assert Task(config_of("torch", **sections)).why_torch(plans) is None


@pytest.mark.parametrize("saved", ["fp16", "int8", "mask"])
def test_a_server_that_knows_no_plans_goes_by_the_configuration(saved):
    task = Task(config_of("compiled", memory={"saved": saved}))
    assert task.why_torch({}).endswith("packs otherwise than as bf16: all devices")
    assert Task(config_of("compiled", memory={"saved": "bf16"})).why_torch({}) is None


def test_a_run_with_programs_has_nothing_to_say():
    task = Task(config_of("compiled"))
    assert task.why_torch({"rpi-4": task.plan(10**9, "test")}) is None


@pytest.mark.soak
def test_one_line_of_a_run_says_why_torch_trains(tmp_path):
    sections, reason = REASONS["optimizer"]
    folder = start(tmp_path / "run", config_of("compiled", run={"rounds": 1}, **sections))
    (line,) = (folder / "run.log").read_text(encoding="utf-8").splitlines()
    assert line.endswith(f"WARNING training.engine = 'compiled': {reason}")
    summary = load_run(folder).summary
    assert summary.why_torch == f"training.engine = 'compiled': {reason}"
    page = unescape(write_report(folder).read_text(encoding="utf-8"))
    assert f"<dt>Training step</dt><dd>{summary.why_torch}</dd>" in page
    path = folder / "summary.json"  # of an earlier version
    table = json.loads(path.read_text(encoding="utf-8"))
    del table["why_torch"]
    path.write_text(json.dumps(table), encoding="utf-8")
    assert "<dt>Training step</dt>" not in render_page(load_run(folder))
