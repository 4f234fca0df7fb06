"""The fit of a step's constants: features by the code itself, constants found again, left out."""

import json

import pytest
import step_cost_fit
from virtual_time import DIGITS, Case

from mest_fed.errors import InputError
from mest_fed.runtime import native_table

NEEDS_RUNTIME = pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")
ENGINES = [pytest.param("compiled", marks=NEEDS_RUNTIME), "torch"]
TRUE = {"dense": 2e-11, "bytes": 3e-11, "step": 1e-4, "strip": 0.0}


def row(model, dense, moved, *, engine="compiled", **more):
    """Return a step that takes what TRUE says."""
    features = dict.fromkeys(step_cost_fit.constants_of(engine), 0.0)
    features |= {"dense": dense, "bytes": moved, "step": 1.0, **more}
    seconds = sum(TRUE.get(name, 0.0) * value for name, value in features.items())
    return {
        "name": model,
        "engine": engine,
        "model": model,
        "features": features,
        "peer": seconds * 1e3,
        "ratio": 0.5,
    }


ROWS = [
    row("small", 1e6, 1e6),
    row("small", 4e6, 1e6),
    row("large", 1e8, 1e7),
    row("large", 2e8, 4e7, plane=100.0),
    row("other", 1e8, 5e8, strip=1e4),
]


def test_constants_are_found_again():
    fitted = step_cost_fit.fit(ROWS)
    assert {name: fitted[name] for name in TRUE} == pytest.approx(TRUE, rel=1e-6, abs=1e-12)
    assert fitted["plane"] == pytest.approx(0, abs=1e-9)
    assert fitted["operator"] == 0  # no case has any


def test_no_constant_is_negative():
    rows = [row("small", 1e6, 1e6), row("small", 1e6, 1e6, plane=10.0)]
    rows[1]["peer"] *= 0.5
    assert min(step_cost_fit.fit(rows).values()) >= 0


def test_a_model_is_foretold_by_the_others():
    rows = [dict(each) for each in ROWS]
    for each in rows:
        if each["model"] == "other":
            each["peer"] *= 2  # takes twice what its features say
    found = step_cost_fit.judge(rows)
    assert [each["left_out_ratio"] for each in rows if each["model"] == "other"] == [0.5]
    (whole,) = (each for each in found["quality"] if each["name"] == "left out: other")
    assert (whole["cases"], whole["near"], whole["error"]) == (1, 0, 0.5)
    assert found["unseen"] == {"large": ["plane"], "other": ["strip"]}


def test_the_codes_constants_can_be_scaled():
    found = step_cost_fit.judge([dict(each) for each in ROWS])
    code, scaled, fitted = found["quality"][:3]
    assert (code["median"], scaled["median"], fitted["median"]) == (0.5, 1.0, 1.0)
    table = {each["name"]: each for each in found["constants"]}
    assert table["dense"]["fitted"] == pytest.approx(50)  # GFLOP/s
    assert table["step"]["fitted"] == pytest.approx(100)  # us
    assert (table["strip"]["cases"], table["dense"]["cases"]) == (1, 5)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_cases_are_some_60_in_micro_batches_to_64(engine):
    cases = list(step_cost_fit.all_cases(engine))
    assert len({case.name for case in cases}) == len(cases) == 66
    assert {case.micro_batch for case in cases} == {1, 2, 4, 8, 10, 16, 32, 64}


@pytest.mark.parametrize("engine", ENGINES)
def test_features_times_constants_are_the_trainers_work(engine, monkeypatch, tmp_path):
    """Each row is checked as it is measured, here and in each run."""
    cases = [Case("mlp", DIGITS, scheme, 4, 2, engine) for scheme in ("block", "unstructured")]
    monkeypatch.setattr(step_cost_fit, "all_cases", lambda _: iter(cases))
    monkeypatch.setattr("virtual_time.LEAST", 0.001)
    file = tmp_path / "fit.json"
    step_cost_fit.main(["--json", str(file), "--engines", engine, "--repeats", "1"])
    written = json.loads(file.read_text())
    strips, singles = (each["features"] for each in written["rows"])
    assert strips["block"] == pytest.approx(singles["unstructured"], rel=1e-3)
    assert strips["strip"] == pytest.approx(singles["single"], rel=1e-3)
    assert min(strips["strip"], strips["bytes"]) > 0
    assert (strips["block"] > 0) == (engine == "torch")  # so small that bytes take longer
    assert strips["unstructured"] == strips["single"] == 0
    (fitted,) = written["fits"]
    assert (fitted["engine"], fitted["without"]) == (engine, {})
    assert len(written["load"]) == 2


def test_a_work_that_the_trainer_has_not_is_refused(monkeypatch):
    monkeypatch.setattr("virtual_time.LEAST", 0.001)
    monkeypatch.setattr(
        step_cost_fit, "all_cases", lambda it: iter([Case("mlp", DIGITS, "dense", 4, 2, it)])
    )
    code = step_cost_fit.constants_of("torch")
    monkeypatch.setattr(step_cost_fit, "constants_of", lambda _: code | {"step": 1.0})
    with pytest.raises(InputError, match="are not those of the trainer's work"):
        list(step_cost_fit.measure("torch", 1))
