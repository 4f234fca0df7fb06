"""The benchmarks of memory: one tiny process of each side, rows, prediction and picture."""

import json
from dataclasses import replace
from pathlib import Path

import accuracy_compiled
import memory
import memory_picture
import memory_prediction
import memory_process
import pytest
from memory_accuracy import Variant, train
from memory_case import Case

from mest_fed.catalogue import Engine
from mest_fed.data import load_dataset
from mest_fed.memory import MemoryOptions
from mest_fed.runtime import native_table
from mest_fed.system.peak_meter import can_measure

PUBLISHED = Path(__file__).parents[2] / "docs" / "benchmarks"
TORCH, COMPILED = Engine.TORCH, Engine.COMPILED
TINY = Case(model="resnet8", width=1.0, batch=8, micro_batch=4, steps=2)


def test_a_case_survives_the_pipe():
    case = replace(TINY, memory=MemoryOptions("segments", "int8", release_gradients=True, frozen=1))
    assert Case.of(case.table()) == case
    assert case.name == "resnet8 batch block 0.1 4 segments int8 consume frozen 1"


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")
def test_both_sides_are_measured_in_processes_of_their_own():
    ours = memory.measured(replace(TINY, memory=memory.LEAN), trimmed=True)
    dense = memory.measured(replace(TINY, side="dense"), trimmed=False)
    program = replace(TINY, norm="group", engine=COMPILED.value, micro_batch=1)
    compiled = memory.measured(program, trimmed=True)
    for found in (ours, dense, compiled):
        assert found["peak"] - found["baseline"] == found["added"] > 0
        assert found["baseline"] > found["imported"] > 10**7
        assert len(found["seconds"]) == 2
    row = memory.comparison_row("goals", "tiny", [ours], [dense], [dense])
    assert (
        row["ratio"] == row["ratio_trimmed"] == pytest.approx(row["peer"] / row["ours"], rel=0.02)
    )


def test_rows_keep_the_names_of_the_published_results(monkeypatch):
    facts = {"added": 10**7, "peak": 10**8, "baseline": 9 * 10**7, "seconds": [1.0, 1.0]}
    monkeypatch.setattr(memory, "measured", lambda case, *, trimmed: facts)
    made = [row["name"] for part in (memory.goals, memory.options) for row in part(1)]
    made += [memory_prediction.title_of(case) for case in memory_prediction.cases(TORCH)]
    table = json.loads((PUBLISHED / "memory-2026-11-24.json").read_text(encoding="utf-8"))
    assert {row["name"] for row in table["rows"]} <= set(made)
    assert [name for name in made if "compiled" in name] == [
        f"resnet32, batch 64, compiled {storage}, groups of 1, block 0.1, group norm"
        for storage in ("fp32", "bf16")
    ]
    assert len(set(made)) == len(made)


def test_quick_runs_are_of_small_models(monkeypatch, tmp_path):
    facts = {"added": 10**7, "peak": 10**8, "baseline": 9 * 10**7, "seconds": [1.0, 1.0]}
    asked = []
    monkeypatch.setattr(memory, "measured", lambda case, **_: asked.append(case) or facts)
    memory.main(["--quick", "--json", str(tmp_path / "rows.json")])
    assert {case.width for case in asked} == {0.25}
    compiled = [case for case in asked if case.is_compiled]
    assert [(case.storage, case.micro_batch) for case in compiled] == [("fp32", 1), ("bf16", 1)]
    written = json.loads((tmp_path / "rows.json").read_text())
    assert (written["width"], len(written["rows"])) == (0.25, 9)


def test_planes_are_stored_as_a_case_says():
    case = replace(TINY, norm="group", engine=COMPILED.value, micro_batch=1, storage="bf16")
    step = memory_process.compiled(case, memory_process.build(case, case.width))
    program = step.step.program
    assert program.examples == 1
    assert "bfloat16" in {it.dtype for it in program.buffers}
    batch = memory_process.Images.draw(case.batch)
    first, *_, last = (step.train(batch.images, batch.labels, 0.1)[0] for _ in range(5))
    assert last < first


@pytest.mark.parametrize(("engine", "least"), [(TORCH, 60), (COMPILED, 100)])
def test_every_combination_has_a_name_of_its_own(engine, least):
    cases = memory_prediction.cases(engine)
    assert len(cases) >= least
    assert len({memory_prediction.title_of(case) for case in cases}) == len(cases)


@pytest.mark.soak
def test_every_small_model_is_predicted():
    small = [case for case in memory_prediction.cases(TORCH) if case.model == "resnet8"]
    assert all(memory_prediction.predict(case).total > 10**6 for case in small)


def test_compiled_steps_are_predicted():
    small = replace(TINY, norm="group", micro_batch=8, optimizer="adam", scheme="channel")
    parts = memory_prediction.predict(replace(small, engine=COMPILED.value)).parts()
    assert 0 < parts["runtime"] < 10**6
    assert parts["optimizer"] > 2 * parts["gradients"] > 0


def test_bounds_of_predictions():
    compiled = replace(TINY, engine=COMPILED.value)
    assert memory_prediction.is_within(TINY, 109, 100)
    assert not memory_prediction.is_within(TINY, 96, 100)
    assert memory_prediction.is_within(compiled, 1_400_000, 1_000_000)
    assert not memory_prediction.is_within(compiled, 97_000_000, 100_000_000)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")
@pytest.mark.parametrize("engine", [TORCH, COMPILED])
def test_a_prediction_stands_beside_its_measurement(engine):
    case = replace(TINY, engine=engine.value, micro_batch=8)
    [row] = memory_prediction.prediction_rows("prediction", [case])
    assert row["engine"] == engine
    assert 0.3 < row["ratio"] < 3


def test_the_picture(tmp_path):
    rows = [
        {"model": name, "ours": 10.0 * (i + 1), "peer": 9.5 * (i + 1), "within": i > 0}
        | {"engine": engine}
        for engine in memory_picture.MARKERS
        for i, name in enumerate(memory_picture.COLOURS)
    ]
    memory_picture.draw(rows, tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert "6 of 8 combinations" in text


def test_accuracy_is_measured_on_the_test_set(monkeypatch):
    digits = load_dataset("digits", "")
    lean = Variant(memory=MemoryOptions("segments", "int8", release_gradients=True))
    first, again = (train(lean, digits, 0, 256, 2) for _ in range(2))
    assert first == again
    assert first != train(lean, digits, 1, 256, 2)
    assert (first * len(digits.test)) == pytest.approx(round(first * len(digits.test)), abs=1e-6)


@pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")
def test_each_engine_and_storage_is_its_own_variant():
    digits = load_dataset("digits", "")
    found = {it: train(how, digits, 0, 64, 1) for it, how in accuracy_compiled.VARIANTS.items()}
    assert found["torch, fp32"] == pytest.approx(found["compiled, fp32"], abs=0.02)
    assert all(0 < accuracy < 1 for accuracy in found.values())
    narrow = accuracy_compiled.VARIANTS["compiled, bf16"]
    assert train(narrow, digits, 0, 64, 1) == found["compiled, bf16"]
