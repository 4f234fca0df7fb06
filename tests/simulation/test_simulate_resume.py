"""A run that was stopped goes on to the same end, wherever and however it was stopped."""

import shutil
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from tiny_run import (
    Recorder,
    StopAfter,
    assert_same_run,
    budget_for,
    read_rows,
    read_summary,
    start,
    tiny_config,
)

import mest_fed.client.handlers
import mest_fed.server.app
from mest_fed.devices import load_profile, profile
from mest_fed.errors import InputError
from mest_fed.nn.models import Architecture
from mest_fed.server.run_folder import RunFolder
from mest_fed.simulation import fleet as fleets
from mest_fed.simulation.rounds import Interrupted
from mest_fed.simulation.simulate import open_run
from mest_fed.simulation.trackers.progress import Observers

BATCH_NORM = {"width": 0.25, "norm": "batch"}
RUN = {"rounds": 4, "seed": 5, "checkpoint_every": 100}
CONFIGS = {
    # Every part of the state at once: residuals, forgetting, moments, masks that clients change.
    "client": {
        "run": RUN,
        "sparsity": {"method": "mest-em", "mutation": "client", "density": 0.2},
        "wire": {"upload": "int8", "download": "fp16"},
        "forgetting": {"fraction": 0.3, "start": 0.5},
        "training": {"optimizer": "adam", "learning_rate": 0.01, "proximal": 0.1, "clip_norm": 1},
        "server": {"optimizer": "fedyogi", "learning_rate": 0.05, "clients_per_round": 3},
    },
    # Unlike budgets, batch statistics, a mask above its target between the rounds.
    "server": {
        "run": RUN,
        "model": BATCH_NORM,
        "server": {"optimizer": "fedavgm", "learning_rate": 0.5, "clients_per_round": 3},
    },
}


@pytest.fixture(scope="module", params=["server", pytest.param("client", marks=pytest.mark.soak)])
def whole(request, tmp_path_factory):
    """A configuration and its run without interruption."""
    sections = CONFIGS[request.param]
    if request.param == "server":
        budget = budget_for(0.1, model=BATCH_NORM)
        fleet = {"mix": "rpi-4:1, rpi-3b-plus:1", "budgets": {"rpi-3b-plus": budget}}
        sections = sections | {"fleet": fleet}
    config = tiny_config(**sections)
    return config, start(tmp_path_factory.mktemp("whole") / "run", config)


def stopped(folder, config, display):
    with pytest.raises(Interrupted):
        start(folder, config, display=display)
    return folder


@pytest.mark.parametrize("number", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_stopped_after_a_round(whole, tmp_path, number):
    config, uninterrupted = whole
    display = StopAfter(number)
    folder = stopped(tmp_path / "run", config, display)
    assert display.ended == 1
    assert not (folder / "summary.json").exists()
    assert (folder / "checkpoints" / f"round-{number:06d}.npz").exists()
    resumed = Recorder()
    start(folder, resume=True, display=resumed)
    assert resumed.begun == (4, number)
    assert_same_run(folder, uninterrupted)


@pytest.mark.soak
def test_stopped_twice(whole, tmp_path):
    config, uninterrupted = whole
    folder = stopped(tmp_path / "run", config, StopAfter(1))
    with pytest.raises(Interrupted):
        start(folder, resume=True, display=StopAfter(3))
    start(folder, resume=True)
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("call", [pytest.param(2, marks=pytest.mark.soak), 8])
def test_stopped_while_a_client_trains(whole, tmp_path, monkeypatch, call):
    config, uninterrupted = whole
    calls, train = [], mest_fed.client.handlers.train_round

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(mest_fed.client.handlers, "train_round", interrupted)
    folder = stopped(tmp_path / "run", config, Observers())
    start(folder, resume=True)
    assert_same_run(folder, uninterrupted)


@pytest.mark.soak
def test_stopped_before_anything_was_reported(whole, tmp_path, monkeypatch):
    config, uninterrupted = whole

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mest_fed.server.app, "evaluate", interrupted)
        folder = stopped(tmp_path / "run", config, Observers())
    start(folder, resume=True)
    assert_same_run(folder, uninterrupted)


class Killed(BaseException):
    """The end of a process that has no time to write anything."""


@pytest.mark.soak
def test_killed_after_rounds_that_no_checkpoint_holds(tmp_path):
    run = {"rounds": 4, "seed": 5, "checkpoint_every": 2}
    config = tiny_config(run=run)
    uninterrupted = start(tmp_path / "whole", config)
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        start(folder, config, display=StopAfter(3, Killed))
    for name in ("rounds.jsonl", "clients.jsonl"):
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write('{"round": 4, "accu')  # it was just about to write this
    start(folder, resume=True)
    assert_same_run(folder, uninterrupted)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run of the plain configuration that has ended."""
    return start(tmp_path_factory.mktemp("done") / "run", tiny_config())


@pytest.fixture
def ended(done, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(done, tmp_path / "ended")


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    return stopped(tmp_path_factory.mktemp("broken") / "run", tiny_config(), StopAfter(1))


@pytest.fixture
def halted(broken_off, tmp_path):
    """A copy of the plain run, stopped after a round."""
    return shutil.copytree(broken_off, tmp_path / "halted")


def test_killed_before_the_summary(ended):
    folder = ended
    before = read_summary(folder)
    (folder / "summary.json").unlink()
    start(folder, resume=True)
    assert read_summary(folder) == before


@pytest.mark.soak
def test_availability_is_drawn_as_if_nothing_had_happened(tmp_path, monkeypatch):
    profile = files("mest_fed.devices") / "profiles" / "rpi-4.toml"
    text = profile.read_text(encoding="utf-8").replace("availability = 0.98", "availability = 0.5")
    (tmp_path / "half.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = {"rounds": 6, "seed": 5, "checkpoint_every": 100}
    config = tiny_config(run=run, fleet={"mix": "half.toml:1"}, server={"clients_per_round": 6})
    uninterrupted = start(tmp_path / "whole", config)
    statuses = [row["status"] for row in read_rows(uninterrupted, "clients")]
    assert 6 < statuses.count("away") < 30
    folder = stopped(tmp_path / "run", config, StopAfter(2))
    start(folder, resume=True)
    assert_same_run(folder, uninterrupted)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(InputError, match=r"--resume: no run in .* \(config\.toml is missing\)"):
        start(tmp_path, resume=True)
    with pytest.raises(InputError, match="--resume: no run in"):
        start(tmp_path / "nowhere", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_never_began(tmp_path):
    RunFolder.create(tmp_path / "run", tiny_config())
    with pytest.raises(InputError, match=r"no checkpoint in .*checkpoints"):
        start(tmp_path / "run", resume=True)


def test_a_finished_run_is_not_resumed(done):
    before = contents(done)
    with pytest.raises(InputError, match=r"is finished \(summary\.json exists\)"):
        start(done, resume=True)
    assert contents(done) == before


@pytest.mark.soak
def test_a_damaged_checkpoint(halted):
    folder = halted
    newest, first = sorted((folder / "checkpoints").iterdir(), reverse=True)
    whole, earlier = newest.read_bytes(), first.read_bytes()
    first.write_bytes(b"")
    for damaged in (b"", whole[: len(whole) // 2], whole[:5000] + b"\0" * 200 + whole[5200:]):
        newest.write_bytes(damaged)
        before = contents(folder)
        with pytest.raises(InputError, match=r"round-00000[01]\.npz is not a whole checkpoint"):
            start(folder, resume=True)
        assert contents(folder) == before
    first.write_bytes(earlier)
    start(folder, resume=True)  # the one before is as good
    assert len(read_rows(folder, "rounds")) == 4


def test_the_configuration_of_another_model(halted):
    folder, config = halted, halted / "config.toml"
    text = config.read_text(encoding="utf-8").replace("width = 0.25", "width = 0.5")
    config.write_text(text, encoding="utf-8")
    before = (folder / "rounds.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"config\.toml has changed since the run wrote it"):
        start(folder, resume=True)
    assert (folder / "rounds.jsonl").read_bytes() == before


OWN_MODEL = """
from sealed_sizes import HIDDEN
from torch import nn


def build(num_classes):
    layers = nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 32), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, num_classes))
"""


def test_files_of_the_users_own_are_sealed(tmp_path):
    names = ("own.py", "sealed_sizes.py", "first.pt", "board.toml")
    model, helper, weights, board = (tmp_path / name for name in names)
    model.write_text(OWN_MODEL, encoding="utf-8")
    helper.write_text("HIDDEN = 32\n", encoding="utf-8")
    board.write_bytes((files("mest_fed.devices") / "profiles" / "rpi-4.toml").read_bytes())
    fleet = {"mix": f"{board}:1"}
    dense = Architecture(f"{model}:build", (1, 8, 8), 10).model(torch.Generator())
    torch.save(dense.state_dict(), weights)
    own = {"name": f"{model}:build", "weights": str(weights), "width": 1.0}
    folder = stopped(tmp_path / "run", tiny_config(model=own, fleet=fleet), StopAfter(1))
    before = contents(folder)
    for file in (model, helper, weights, board):
        whole = file.read_bytes()
        file.write_bytes(whole + b"\n")
        with pytest.raises(InputError, match=f"^--resume: {file} has changed since the run first"):
            start(folder, resume=True)
        file.rename(tmp_path / "elsewhere")
        with pytest.raises(InputError, match=f"^--resume: {file} is missing$"):
            start(folder, resume=True)
        file.write_bytes(whole)
    assert contents(folder) == before
    start(folder, resume=True)


def test_a_log_that_is_no_json(halted):
    (halted / "rounds.jsonl").write_text('{"round": 0}\nnonsense\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"rounds\.jsonl, line 2: "):
        start(halted, resume=True)


@pytest.mark.soak
def test_a_copied_run_goes_on_elsewhere(done, tmp_path):
    folder = stopped(tmp_path / "run", tiny_config(), StopAfter(1))
    shutil.move(folder, tmp_path / "moved")
    start(tmp_path / "moved", resume=True)
    assert_same_run(tmp_path / "moved", done)


def test_a_new_run_needs_a_configuration(tmp_path):
    with pytest.raises(InputError, match="needs a configuration"):
        open_run("x", None, tmp_path / "run", resume=False)


def contents(folder):
    """Return the bytes of all files but the store's, whose book-keeping changes as it is opened."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: path.read_bytes() for path in files if path.parent.name != "states"}


COUNTS = """
import torch
from torch import nn


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def build(input_shape, num_classes):
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), Counts(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, num_classes))
"""


def test_what_a_model_counts_does_not_tell_how_often_a_run_was_stopped(tmp_path):
    (tmp_path / "counts.py").write_text(COUNTS, encoding="utf-8")
    model = {"name": f"{tmp_path}/counts.py:build", "width": 1.0}
    config = tiny_config(model=model, server={"evaluate_every": 1})
    start(tmp_path / "whole", config)
    folder = stopped(tmp_path / "run", config, StopAfter(1))
    start(folder, resume=True)
    assert_same_run(folder, tmp_path / "whole")


def test_a_run_keeps_the_profiles_that_it_began_with(done, halted, monkeypatch):
    slower = replace(load_profile("rpi-4"), core_speed=0.01)
    for module in (profile, fleets):
        monkeypatch.setattr(module, "load_profile", lambda _: slower)
    notes = []

    class Notes(Recorder):
        def note(self, text):
            notes.append(text)

    start(halted, resume=True, display=Notes())
    assert [text for text in notes if "rpi-4" in text] == [
        "device profile rpi-4 has changed since the run began; the run goes on with the profile "
        "that it began with"
    ]
    assert_same_run(done, halted)
