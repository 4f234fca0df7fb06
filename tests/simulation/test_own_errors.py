"""Things of a user's own that raise in the middle of a run."""

import shutil
from pathlib import Path

import pytest
from tiny_run import Recorder, read_rows, read_summary, start, tiny_config

from mest_fed.errors import InputError
from mest_fed.simulation.trackers.progress import Observers
from mest_fed.simulation.trackers.trackers import open_trackers

HERE = Path(__file__).parent
LATE = {"mode": "buffered", "concurrency": 4, "buffer": 3}
#: Section, key, name of what the server calls, other keys of the section.
OF_THE_SERVER = [
    ("server", "selection", "Chooses", {}),
    ("server", "selection", "Learns", {}),
    ("server", "mode", "Rounds", {}),
    ("server", "optimizer", "Step", {}),
    ("server", "weighting", "weight", LATE),
    ("sparsity", "method", "Method", {"mutation": "server"}),
    ("wire", "download", "Codec", {}),
    ("task", "name", "Guesses", {}),
]
OF_THE_CLIENTS = [
    ("sparsity", "method", "Method", {"mutation": "client"}),
    ("training", "optimizer", "Descent", {}),
    ("data", "augmentation", "brighter", {}),
    ("wire", "upload", "Codec", {}),
]


def named(thing):
    return ".".join(thing[:3])


class BreakAfter(Recorder):
    """Breaks the things after a round."""

    def __init__(self, file, number):
        super().__init__()
        self.file, self.number = file, number

    def round_done(self, row):
        super().round_done(row)
        if row["round"] == self.number:
            self.file.touch()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return a file of things; one, as codecs keep their numbers in a process."""
    return Path(shutil.copy(HERE / "failing_things.py", tmp_path_factory.mktemp("own")))


@pytest.fixture
def things(file):
    """Return the file of things, and what breaks them if it is there."""
    broken = file.parent / "broken"
    yield file, broken
    broken.unlink(missing_ok=True)


def config_of(file, section, key, name, others):
    server = {"evaluate_clients_every": 0, "evaluate_every": 1}
    tables = {"run": {"rounds": 3}, "server": server}
    tables[section] = tables.get(section, {}) | {key: f"{file}:{name}"} | others
    return tiny_config(**tables)


@pytest.mark.soak
@pytest.mark.parametrize("thing", OF_THE_SERVER, ids=named)
def test_one_line_names_the_thing_and_its_key(thing, things, tmp_path):
    file, broken = things
    section, key, name, _ = thing
    config = config_of(file, *thing)
    with pytest.raises(InputError) as caught:
        start(tmp_path / "run", config, display=BreakAfter(broken, 1))
    line = str(caught.value)
    assert line.startswith(f"{section}.{key} = '{file}:{name}': KeyError: 'no battery' ({file}:")
    assert line.endswith(f"; go on with: mest-fed simulate --resume --out {tmp_path}/run")
    log = (tmp_path / "run" / "run.log").read_text()
    assert "Traceback" in log
    assert "in ask_the_battery" in log
    assert [row["round"] for row in read_rows(tmp_path / "run", "rounds")] == [0, 1]


@pytest.mark.soak
def test_the_run_goes_on_once_the_thing_works(things, tmp_path):
    file, broken = things
    config = config_of(file, *OF_THE_SERVER[0])
    with pytest.raises(InputError):
        start(tmp_path / "run", config, display=BreakAfter(broken, 1))
    broken.unlink()
    start(tmp_path / "run", resume=True)
    start(tmp_path / "whole", config)
    ours, whole = (read_summary(tmp_path / name) for name in ("run", "whole"))
    assert ours["model_sha256"] == whole["model_sha256"]


@pytest.mark.soak
@pytest.mark.parametrize("thing", OF_THE_CLIENTS, ids=named)
def test_it_costs_a_client_its_round(thing, things, tmp_path):
    file, broken = things
    section, key, name, _ = thing
    config = config_of(file, *thing)
    start(tmp_path / "run", config, display=BreakAfter(broken, 1))
    rows = read_rows(tmp_path / "run", "clients")
    failed = [row for row in rows if row["status"] != "ok"]
    assert {row["round"] for row in failed} <= {2, 3}
    assert failed
    for row in failed:
        assert f"{section}.{key} = '{file}:{name}': KeyError: 'no battery'" in row["reason"]
    assert "in ask_the_battery" in (tmp_path / "run" / "run.log").read_text()


def test_a_tracker_costs_one_line_and_the_run_goes_on(things, tmp_path, caplog):
    file, broken = things
    config = config_of(file, "server", "selection", "Chooses", {})
    broken.touch()
    trackers = open_trackers([f"{file}:Lines"], tmp_path / "run")
    config = tiny_config(run={"rounds": 1})
    start(tmp_path / "run", config, display=Observers(*trackers))
    said = f"--log {file}:Lines stopped (KeyError: 'no battery'); the run goes on without it"
    assert said in caplog.messages
    assert "in ask_the_battery" in (tmp_path / "run" / "run.log").read_text()
