"""The benchmarks of memory: one tiny process of each side, rows, prediction and picture."""

import json
from dataclasses import replace
from pathlib import Path

import accuracy_compiled
import memory
import memory_compiled
import memory_picture
import memory_prediction
import pytest
from memory_accuracy import Variant, train
from memory_case import Case

from mest_fed.data import load_dataset
from mest_fed.memory import MemoryOptions
from mest_fed.memory.meter import can_measure
from mest_fed.runtime import native_table

PUBLISHED = Path(__file__).parents[2] / "docs" / "benchmarks"
TINY = Case(model="resnet8", width=1.0, batch=8, micro_batch=4, steps=2)


def test_a_case_survives_the_pipe():
    case = replace(TINY, memory=MemoryOptions("segments", "int8", release_gradients=True, frozen=1))
    assert Case.of(case.table()) == case
    assert case.name == "resnet8 batch block 0.1 4 segments int8 consume frozen 1"


@pytest.mark.slow
@pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")
def test_both_sides_are_measured_in_processes_of_their_own():
    ours = memory.measured(replace(TINY, memory=memory.LEAN), trimmed=True)
    dense = memory.measured(replace(TINY, side="dense"), trimmed=False)
    for found in (ours, dense):
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
    made += [case.name for case in memory_prediction.cases()]
    table = json.loads((PUBLISHED / "memory-2026-11-24.json").read_text(encoding="utf-8"))
    assert sorted(made) == sorted(row["name"] for row in table["rows"])


def test_every_combination_is_predicted_at_least_once():
    cases = memory_prediction.cases()
    assert len(cases) >= 60
    assert len({case.name for case in cases}) == len(cases)
    small = [case for case in cases if case.model == "resnet8"]
    assert all(memory_prediction.predict(case).total > 10**6 for case in small)


def test_compiled_steps_are_predicted_over_a_hundred_combinations():
    cases = memory_compiled.cases()
    assert len(cases) >= 100
    names = [f"{case.name} {case.batch} {case.optimizer}" for case in cases]
    assert len(set(names)) == len(names)
    small = replace(TINY, norm="group", micro_batch=8, optimizer="adam", scheme="channel")
    parts = memory_compiled.predict(small).parts()
    assert 0 < parts["runtime"] < 10**6
    assert parts["optimizer"] > 2 * parts["gradients"] > 0


def test_the_picture(tmp_path):
    rows = [
        {"model": name, "ours": 10.0 * (i + 1), "peer": 9.5 * (i + 1), "ratio": 1.05}
        for i, name in enumerate(memory_picture.COLOURS)
    ]
    memory_picture.draw(rows, tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert "4 of 4 combinations" in text


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
