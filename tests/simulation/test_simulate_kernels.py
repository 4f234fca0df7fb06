"""A run chooses its kernels once, writes them down, and computes with them wherever it runs."""

import gc
import json
import logging
from functools import partial
from itertools import cycle

import pytest
from tiny_run import (
    StopAfter,
    assert_same_run,
    budget_for,
    read_rows,
    read_summary,
    start,
    tiny_config,
)

import mest_fed.client.kernels
from mest_fed.errors import InputError
from mest_fed.kernels import native
from mest_fed.nn.tuning import tune
from mest_fed.server.run_folder import RunFolder
from mest_fed.simulation.fleet import Fleet, run_kernels
from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.simulation.rounds import Interrupted
from mest_fed.simulation.simulate import open_run
from mest_fed.task import Task

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(native.variant() is None, reason="no compiled kernels"),
]

TUNED_CONFIG = {
    "training": {"kernels": "tuned", "engine": "torch", "batch_size": 32, "device": "cpu"}
}


class Timer:
    """A benchmark that each implementation wins in its turn; counts how often it is held."""

    def __init__(self):
        self.held, self._turns = 0, cycle(("dense", "padded", "padded", "dense", "dense"))

    def __call__(self, contestants):
        self.held += 1
        best = next(self._turns)
        return {name: 0.001 if name == best else 0.002 for name in contestants}


@pytest.fixture
def timer(monkeypatch):
    """Put a timer in the place of the clock."""
    timer = Timer()
    monkeypatch.setattr(mest_fed.client.kernels, "tune", partial(tune, benchmark=timer))
    return timer


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The folder of a tuned run whose layers run dense and compiled, product by product."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mest_fed.client.kernels, "tune", partial(tune, benchmark=Timer()))
        return start(tmp_path_factory.mktemp("mixed") / "run", tiny_config(**TUNED_CONFIG))


def table_of(folder):
    return json.loads((folder / "kernels.json").read_text(encoding="utf-8"))


def chosen(folder):
    return {name for row in table_of(folder)["rows"] for name in row["choice"].values()}


def sha(folder):
    return read_summary(folder)["model_sha256"]


def test_the_rule_is_written_down_and_never_timed(tmp_path, timer):
    table = table_of(start(tmp_path / "run", tiny_config()))
    assert timer.held == 0
    assert (table["mode"], table["variant"], table["threads"]) == ("rule", native.variant(), 1)
    layers = {name for row in table["rows"] for name in row["layers"]}
    assert layers == {"stage1.0.conv1", "stage1.0.conv2"} | {
        f"stage{stage}.0.conv{half}" for stage in (2, 3) for half in (1, 2)
    }
    assert all(row["milliseconds"] == {} for row in table["rows"])
    assert all(set(row["choice"].values()) <= {"dense", "padded"} for row in table["rows"])


def test_a_tuned_run_shows_its_times(mixed):
    table = table_of(mixed)
    assert table["mode"] == "tuned"
    assert chosen(mixed) == {"dense", "padded"}
    for row in table["rows"]:
        for product, times in row["milliseconds"].items():
            assert times[row["choice"][product]] == min(times.values()) == 1.0
    # The target density, and the soft bound's peaks.
    assert {row["case"]["band"] for row in table["rows"]} == {0.2, 0.3}


@pytest.mark.soak
def test_the_dense_weight_everywhere(tmp_path, timer):
    training = TUNED_CONFIG["training"] | {"kernels": "dense"}
    dense = start(tmp_path / "dense", tiny_config(training=training))
    ruled = start(tmp_path / "rule", tiny_config(training={"engine": "torch"}))
    assert (timer.held, table_of(dense)["mode"], chosen(dense)) == (0, "dense", {"dense"})
    assert sha(dense) != sha(ruled)


def test_choices_reach_the_clients(mixed, tmp_path):
    ruled = start(tmp_path / "rule", tiny_config(training={"engine": "torch"}))
    assert sha(mixed) != sha(ruled)


def test_a_table_repeats_the_bits_of_its_run(mixed, tmp_path, timer):
    training = TUNED_CONFIG["training"] | {"kernels": str(mixed / "kernels.json")}
    folder = start(tmp_path / "again", tiny_config(training=training))
    assert timer.held == 0
    assert (folder / "kernels.json").read_bytes() == (mixed / "kernels.json").read_bytes()
    assert_same_run(folder, mixed)


def test_the_table_of_a_run_by_rule_is_the_rule(tmp_path):
    ruled = start(tmp_path / "rule", tiny_config(training={"engine": "torch"}))
    training = TUNED_CONFIG["training"] | {"kernels": str(ruled / "kernels.json")}
    folder = start(tmp_path / "again", tiny_config(training=training))
    assert table_of(folder)["mode"] == "rule"
    assert_same_run(folder, ruled)


def test_cases_that_a_table_lacks_go_by_the_rule(mixed, tmp_path):
    training = TUNED_CONFIG["training"] | {"kernels": str(mixed / "kernels.json")}
    config = tiny_config(training=training, model={"width": 0.5})
    by_torch = tiny_config(training={"engine": "torch"}, model={"width": 0.5})
    with_rule = start(tmp_path / "rule", by_torch)
    folder = start(tmp_path / "run", config)
    assert len(table_of(folder)["rows"]) > len(table_of(mixed)["rows"])
    assert sha(folder) == sha(with_rule)


@pytest.mark.parametrize("number", [0, 2])
def test_a_resumed_run_takes_its_own_table_and_times_nothing(mixed, tmp_path, timer, number):
    with pytest.raises(Interrupted):
        start(tmp_path / "run", tiny_config(**TUNED_CONFIG), display=StopAfter(number))
    held = timer.held
    before = (tmp_path / "run" / "kernels.json").read_bytes()
    start(tmp_path / "run", resume=True)
    assert timer.held == held > 0
    assert (tmp_path / "run" / "kernels.json").read_bytes() == before
    assert_same_run(tmp_path / "run", mixed)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_workers_compute_with_the_same_table(mixed, tmp_path, timer, monkeypatch):
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    logging.getLogger("server").setLevel(logging.ERROR)
    config = tiny_config(**TUNED_CONFIG)
    folder = tmp_path / "run"
    open_run("tiny", config, folder, resume=False).run(2)
    gc.collect()
    assert (folder / "kernels.json").read_bytes() == (mixed / "kernels.json").read_bytes()
    assert_same_run(folder, mixed)


# What is wrong.


def stopped(tmp_path, config):
    with pytest.raises(Interrupted):
        start(tmp_path / "run", config, display=StopAfter(1))
    return tmp_path / "run"


@pytest.mark.parametrize("text", ["", "[]", '{"mode": "tuned"}', "\0"])
def test_a_damaged_table(tmp_path, timer, text):
    folder = stopped(tmp_path, tiny_config(**TUNED_CONFIG))
    (folder / "kernels.json").write_text(text, encoding="utf-8")
    before = {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"kernels\.json"):
        start(folder, resume=True)
    assert {path: path.read_bytes() for path in folder.glob("*") if path.is_file()} == before


@pytest.mark.parametrize("sections", [TUNED_CONFIG, {}], ids=["tuned", "rule"])
def test_a_missing_table_is_not_made_again(tmp_path, timer, sections):
    folder = stopped(tmp_path, tiny_config(**sections))
    (folder / "kernels.json").unlink()
    with pytest.raises(InputError, match=r"kernels\.json is missing"):
        start(folder, resume=True)


def test_a_table_that_is_not_there_leaves_no_folder(tmp_path):
    training = {"kernels": str(tmp_path / "none.json")}
    with pytest.raises(InputError, match=r"training\.kernels: .*none\.json cannot be read"):
        start(tmp_path / "run", tiny_config(training=training))
    assert not (tmp_path / "run").exists()


# The fleet.


@pytest.mark.soak
def test_every_density_of_the_fleet_is_tuned_at_its_micro_batch(tmp_path, monkeypatch):
    model = {"width": 0.25, "norm": "batch"}  # takes no micro-batch below 8
    fleet = {
        "mix": "rpi-4:2, rpi-5:1",
        "budgets": {"rpi-5": budget_for(0.1, model=model, **TUNED_CONFIG)},
    }
    config = tiny_config(**TUNED_CONFIG, model=model, fleet=fleet)
    calls = []

    def note(net, shape, batch, known, input_dtype):
        largest = max(
            (m for m in net.modules() if hasattr(m, "mask")), key=lambda m: m.layout.num_weights
        )
        calls.append((round(largest.mask.density, 2), shape, batch))
        return []

    monkeypatch.setattr(mest_fed.client.kernels, "tune", note)
    task = Task(config)
    plans = {tier.profile.name: tier.plan for tier in Fleet.of(task).tiers}
    table = run_kernels(task, Fleet.of(task), RunFolder(tmp_path), resume=False)
    assert (table.mode, table.rows) == ("tuned", ())
    large, small = plans["rpi-4"].micro_batch, plans["rpi-5"].micro_batch
    expected = [(0.2, large), (0.25, large), (0.3, large), (0.1, small), (0.12, small)]
    assert [(d, b) for d, _, b in calls] == [*expected, (0.15, small)]
    assert {shape for _, shape, _ in calls} == {(1, 8, 8)}


@pytest.mark.parametrize(
    "sparsity",
    [
        {"method": "dense"},
        {"scheme": "pattern", "density": 0.4},  # its soft bound would be above what it holds
        {"scheme": "channel", "density": 0.9},
    ],
)
def test_fleets_of_other_kinds(tmp_path, timer, sparsity):
    config = tiny_config(**TUNED_CONFIG, sparsity=sparsity, run={"rounds": 1})
    folder = start(tmp_path / "run", config)
    assert {row["status"] for row in read_rows(folder, "clients")} == {"ok"}
    assert bool(table_of(folder)["rows"]) == (sparsity.get("method") != "dense")


@pytest.mark.soak
@pytest.mark.slow
def test_the_measurement_computes_with_the_runs_kernels(tmp_path, timer):
    config = tiny_config(**TUNED_CONFIG, run={"rounds": 1})
    task = Task(config)
    fleet = Fleet.of(task)
    folder = RunFolder.create(tmp_path / "run", config)
    table = run_kernels(task, fleet, folder, resume=False)
    measurement = PeakMeasurement.start(config, "", table, list(fleet.plans.values()))
    try:
        peaks = measurement.results()
    finally:
        measurement.stop()
    assert measurement.process is None or measurement.process.returncode == 0
    assert all(size > 0 for size in peaks.values())
