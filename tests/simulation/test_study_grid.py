"""From axes to cells: by hand and by properties."""

from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_cases import SMALL, study_of

from mest_fed.errors import InputError
from mest_fed.simulation.study.axes import key_of
from mest_fed.simulation.study.budgets import StudyForecasts
from mest_fed.simulation.study.checks import check_study
from mest_fed.simulation.study.grid import cell_id, digest_of, expand, points
from mest_fed.simulation.study.study_file import read_study, study_names

AXES = """
[axes]
method = ["dense", "static", "fedpaq"]
density = [0.1, 0.2]
seed = [1, 2]

[bundles.method.fedpaq]
"sparsity.method" = "dense"
wire.upload = "int8"
"""


def ids(text):
    return [cell.id for cell in expand(study_of(text))]


def labels_of(study):
    return [tuple(value.label for value in point.values()) for point in points(study)]


def test_a_grid_by_hand():
    text = SMALL + '[axes]\nmethod = ["static", "set"]\nseed = [1, 2]\n'
    cells = expand(study_of(text))
    assert [cell.id for cell in cells] == [
        "method=static,seed=1",
        "method=static,seed=2",
        "method=set,seed=1",
        "method=set,seed=2",
    ]
    assert [(cell.config.sparsity.method, cell.config.run.seed) for cell in cells] == [
        ("static", 1),
        ("static", 2),
        ("set", 1),
        ("set", 2),
    ]
    assert all(cell.config.run.rounds == 2 for cell in cells)
    assert [cell.run for cell in cells] == [cell.id for cell in cells]
    assert all(cell.digest == digest_of(cell.config) for cell in cells)


def test_a_bundle_is_one_value_and_lies_over_plain_ones():
    cells = {cell.id: cell for cell in expand(study_of(SMALL + AXES))}
    config = cells["method=fedpaq,density=0.2,seed=2"].config
    assert (config.sparsity.method, config.wire.upload) == ("dense", "int8")
    assert (config.sparsity.density, config.run.seed) == (0.2, 2)
    assert cells["method=static,density=0.1,seed=1"].config.wire.upload == "fp32"


def test_cells_of_one_configuration_share_a_run():
    text = SMALL + AXES.replace("wire.upload", "sparsity.density = 1.0\nwire.upload")
    cells = {cell.id: cell for cell in expand(study_of(text))}
    first, second = (cells[f"method=fedpaq,density={it},seed=1"] for it in ("0.1", "0.2"))
    assert first.digest == second.digest
    assert second.run == first.id == first.run
    other = cells["method=fedpaq,density=0.2,seed=2"]
    assert other.run == "method=fedpaq,density=0.1,seed=2"


def test_what_is_excluded_and_what_is_added():
    more = """
[[exclude]]
method = "static"
density = [0.2]

[[include]]
method = "rigl"
density = 0.5

[[exclude]]
method = "fedpaq"
"""
    found = ids(SMALL + "sparsity.mutation = 'client'\n" + AXES + more)
    assert [each for each in found if "dense" in each or "fedpaq" in each] == [
        f"method=dense,density={density},seed={seed}" for density in (0.1, 0.2) for seed in (1, 2)
    ]
    assert [each for each in found if "static" in each] == [
        "method=static,density=0.1,seed=1",
        "method=static,density=0.1,seed=2",
    ]
    assert found[-2:] == ["method=rigl,density=0.5,seed=1", "method=rigl,density=0.5,seed=2"]


def test_names_of_axes():
    assert key_of("seed", "x") == "run.seed"
    assert key_of("sparsity.density", "x") == "sparsity.density"
    assert key_of("data.options.length", "x") == "data.options.length"


def test_ids_are_fit_for_folders():
    text = (
        SMALL + '[axes]\nscheme = ["block:8", "pattern"]\nmix = ["rpi-4:1, rpi-5:2", "rpi-4:1"]\n'
    )
    found = ids(text)
    assert found[0] == "scheme=block-8,mix=rpi-4-1-rpi-5-2"
    assert len(set(found)) == 4
    long = study_of(SMALL + f'[axes]\nmix = ["{", ".join(f"rpi-4:{n}" for n in range(1, 2))}"]\n')
    assert len(cell_id(next(points(long)))) < 80


def test_a_share_is_of_one_dense_training_whatever_a_cell_trains_by():
    text = (
        SMALL
        + """
[axes]
budget = ["50%"]
way = ["plain", "forward", "frozen", "client"]
[bundles.way.plain]
sparsity.method = "static"
[bundles.way.forward]
training.gradient = "zeroth-order"
training.perturbations = 2
[bundles.way.frozen]
memory.frozen = 1
[bundles.way.client]
sparsity.mutation = "client"
"""
    )
    cells = expand(study_of(text))
    assert len({cell.config.fleet.budgets for cell in cells}) == 1


def test_a_budget_is_bytes_or_a_share_of_dense_training():
    text = SMALL + '[axes]\nbudget = ["50%", "25%", "3MB"]\n'
    half, quarter, bytes_ = (
        cell.config.fleet.budget_bytes["rpi-4"] for cell in expand(study_of(text))
    )
    assert bytes_ == 3_000_000
    assert half == pytest.approx(2 * quarter, rel=0.01)
    assert half % 10_000 == 0 == quarter % 1_000  # three digits: machines do not agree on more


VALUES = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(VALUES, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=2),
)
def test_no_cell_twice_and_the_order_is_that_of_the_axes(lists, left_out):
    names = ["seed", "training.proximal", "behaviour.away_seconds"][: len(lists)]
    lines = ["[axes]", *(f'"{name}" = {values}' for name, values in zip(names, lists, strict=True))]
    for axis, place in left_out:
        if axis < len(lists) and place < len(lists[axis]):
            lines += ["[[exclude]]", f'"{names[axis]}" = {lists[axis][place]}']
    study = study_of("\n".join(lines))
    gone = {
        (study.axes[a].name, study.axes[a].labels[p])
        for a, p in left_out
        if a < len(lists) and p < len(lists[a])
    }
    left = [sum((axis.name, label) not in gone for label in axis.labels) for axis in study.axes]
    if not prod(left):
        with pytest.raises(InputError, match="all are excluded"):
            list(points(study))
        return
    found = labels_of(study)
    assert len(set(found)) == len(found) == prod(left)
    places = [
        [axis.labels.index(label) for axis, label in zip(study.axes, each, strict=True)]
        for each in found
    ]
    assert places == sorted(places)
    assert found == labels_of(study)


def test_robustness_has_its_conditions_by_itself():
    text = '[study]\nprotocol = "robustness"\n' + SMALL + '[axes]\nmethod = ["dense", "set"]\n'
    cells = expand(study_of(text))
    assert [cell.labels["condition"] for cell in cells[:4]] == [
        "calm",
        "stragglers",
        "dropout",
        "short-memory",
    ]
    changed = {cell.labels["condition"]: cell.config.behaviour for cell in cells[:4]}
    assert changed["dropout"].dropout == 0.3
    assert changed["calm"].dropout == changed["calm"].stragglers == 0
    mine = text + "[bundles.condition.dropout]\nbehaviour.dropout = 0.9\n"
    found = {cell.labels["condition"]: cell.config.behaviour for cell in expand(study_of(mine))}
    assert found["dropout"].dropout == 0.9
    assert found["stragglers"].stragglers == 0.3


@pytest.fixture
def _all_fits(monkeypatch):
    """What fits a budget takes seconds to find for each method; test_model_that_fits does."""
    monkeypatch.setattr(StudyForecasts, "share", lambda *_: 1.0)


@pytest.mark.usefixtures("_all_fits")
def test_the_studies_that_ship_are_studies():
    assert "quickstart" in study_names()
    for name in study_names():
        study = read_study(name)
        cells = expand(study)
        check_study(study, cells)
        assert cells


@pytest.mark.usefixtures("_all_fits")
def test_the_file_of_the_guide_is_a_study():
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    study = study_of(page.partition("```toml\n")[2].partition("```")[0])
    cells = expand(study)
    check_study(study, cells)
    assert len(cells) == 4 * 2 * 3 - 3 + 3


def test_paths_are_relative_to_the_studys_file(tmp_path):
    (tmp_path / "base.toml").write_text("[run]\nrounds = 3\n")
    (tmp_path / "s.toml").write_text('[study]\nconfig = "base.toml"\n[axes]\nseed = [1]\n')
    (cell,) = expand(read_study(str(tmp_path / "s.toml")))
    assert cell.config.run.rounds == 3
