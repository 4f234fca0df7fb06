"""A run goes on for more rounds than it was planned for."""

import pytest
from tiny_run import StopAfter, assert_same_run, read_rows, read_summary, tiny_config

from mest_fed.config import from_table, read_toml
from mest_fed.errors import InputError
from mest_fed.server.checkpoint import load_newest
from mest_fed.simulation.more_rounds import NewPlan
from mest_fed.simulation.rounds import Interrupted
from mest_fed.simulation.simulate import open_run

#: Several runs each.
pytestmark = pytest.mark.soak

#: Nothing here depends on progress, and every round is evaluated: the number of rounds is a number.
STEADY = {
    "training": {"schedule": "constant"},
    "sparsity": {"method": "static", "density": 0.2},
    "server": {"evaluate_every": 1, "evaluate_clients_every": 1},
}


def steady(rounds, **sections):
    return tiny_config(**STEADY | {"run": {"rounds": rounds, "seed": 5}} | sections)


@pytest.fixture
def go(monkeypatch):
    """Return a function that runs, or goes on, in this process; memory is not measured."""
    from mest_fed.simulation.peak_measurement import PeakMeasurement

    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))

    def go(folder, config=None, more=0, display=None):
        run = open_run("tiny", config, folder, resume=config is None, more=more, observer=display)
        return run.run(0)

    return go


def planned_rounds(folder):
    return from_table(read_toml(folder / "config.toml"), "it").run.rounds


@pytest.mark.soak
def test_where_nothing_depends_on_progress_it_is_the_run_of_all_rounds(go, tmp_path):
    whole = go(tmp_path / "whole", steady(4))
    folder = go(tmp_path / "run", steady(2))
    go(folder, more=2)
    assert_same_run(folder, whole)
    assert planned_rounds(folder) == 4


@pytest.mark.soak
def test_a_stopped_run_goes_on_to_the_new_end_without_being_told_again(go, tmp_path):
    whole = go(tmp_path / "whole", steady(4))
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(folder, steady(3), display=StopAfter(1))
    with pytest.raises(Interrupted):
        go(folder, more=1, display=StopAfter(2))
    assert not (folder / "summary.json").exists()
    go(folder)
    assert_same_run(folder, whole)


@pytest.mark.soak
def test_the_rate_goes_on_as_in_a_run_of_all_rounds(go, tmp_path, monkeypatch):
    from mest_fed.task import Task

    seen, optimizer = [], Task.optimizer

    def noted(task, progress):
        seen.append(progress)
        return optimizer(task, progress)

    folder = go(tmp_path / "run", steady(2))
    run = open_run("tiny", None, folder, resume=True, more=2)
    monkeypatch.setattr(Task, "optimizer", noted)
    run.run(0)
    assert set(seen) - {0.0} == {2 / 4, 3 / 4}  # 0: the settings that hold in every round


def test_what_the_end_left_is_gone_while_the_run_goes_on(go, tmp_path):
    folder = go(tmp_path / "run", steady(1))
    assert (folder / "model.pt").exists()
    with pytest.raises(Interrupted):
        go(folder, more=2, display=StopAfter(2))
    assert not (folder / "model.pt").exists()
    assert not (folder / "summary.json").exists()


class Killed(BaseException):
    """The end of a process that has no time to write anything."""


@pytest.mark.soak
def test_killed_before_the_configuration_was_written(go, tmp_path, monkeypatch):
    whole = go(tmp_path / "whole", steady(3))
    folder = go(tmp_path / "run", steady(2))

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("mest_fed.server.run_folder.RunFolder.write_config", killed)
        with pytest.raises(Killed):
            go(folder, more=1)
    assert planned_rounds(folder) == 2
    go(folder)  # the checkpoint knows
    assert_same_run(folder, whole)


def test_no_other_change_is_taken(go, tmp_path):
    folder = go(tmp_path / "run", steady(1))
    config = folder / "config.toml"
    before = config.read_text(encoding="utf-8")
    for old, new in (("rounds = 1\n", "rounds = 3\n"), ("seed = 5", "seed = 6")):
        assert old in before
        config.write_text(before.replace(old, new), encoding="utf-8")
        with pytest.raises(InputError, match=r"config\.toml has changed since the run wrote it"):
            go(folder, more=2)
    assert read_summary(folder)["rounds"] == 1


def test_a_run_that_stopped_by_its_rule_gets_no_more_rounds(go, tmp_path):
    rule = {"stop_when": "accuracy >= 0.0"}
    server = STEADY["server"] | rule
    folder = go(tmp_path / "run", steady(3, server=server))
    assert read_summary(folder)["rounds"] == 1
    with pytest.raises(InputError, match=r"--rounds 2 is not allowed: server\.stop_when = "):
        go(folder, more=2)
    assert (folder / "summary.json").exists()


def test_more_rounds_than_checkpoints_have_names_for_are_refused(go, tmp_path):
    folder = go(tmp_path / "run", steady(1))
    with pytest.raises(InputError, match=r"run\.rounds = 1000000 is not allowed"):
        go(folder, more=999_999)
    assert (folder / "summary.json").exists()


def test_what_cannot_start_leaves_the_finished_run_as_it_was(go, tmp_path, monkeypatch):
    folder = go(tmp_path / "run", steady(1))

    def fail(*_, **__):
        raise InputError("no")

    monkeypatch.setattr("mest_fed.simulation.simulate.run_kernels", fail)
    with pytest.raises(InputError, match=r"^no$"):
        go(folder, more=1)
    assert (folder / "summary.json").exists()
    assert planned_rounds(folder) == 1


def test_a_plan_is_sealed(go, tmp_path):
    folder = go(tmp_path / "run", steady(1))
    go(folder, more=1)
    facts = load_newest(folder / "checkpoints")[1]
    assert facts["round"] == 2
    assert [row["round"] for row in read_rows(folder, "rounds")] == [0, 1, 2]
    assert NewPlan(steady(2)).config == from_table(read_toml(folder / "config.toml"), "it")
