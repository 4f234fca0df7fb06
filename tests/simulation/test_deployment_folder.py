"""What the ServerApp of real devices leaves; here the devices are of this process."""

import json
import logging
import re
from contextlib import closing

import pytest
import torch
from tiny_run import tiny_config

from mest_fed.config import from_table, read_toml, to_flat
from mest_fed.errors import InputError
from mest_fed.server import deployed
from mest_fed.server.app import build_server_app
from mest_fed.server.flower_internals import FLOWER_CONSOLE, run_server_app
from mest_fed.server.node import Node
from mest_fed.server.real_devices import real_devices, reported_peaks, tier_plans
from mest_fed.server.rows import known_sum
from mest_fed.server.run_folder import RunFolder
from mest_fed.simulation.engine.executor import SerialExecutor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.fleet import Fleet
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.simulate import open_run
from mest_fed.task import Task

CONFIG = {
    "run": {"rounds": 4},
    "fleet": {"devices": 4},
    "server": {"clients_per_round": 3},
    "sparsity": {"period": 0.25},
}


class StoppedAfter(EngineGrid):
    """Stops the server, as a kill does, when a round begins."""

    last = 10**9

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            if "mest" in message.content and message.content["mest"]["round"] > self.last:
                raise KeyboardInterrupt
        return super().push_messages(messages)


def deploy(folder, last=10**9, kind=StoppedAfter, **sections):
    """Run the ServerApp as it is deployed; devices know nothing of an earlier run."""
    table = {name: keys | sections.get(name, {}) for name, keys in CONFIG.items()}
    resume = sections.get("deployment", {})
    deployment = {"folder": str(folder)} | resume
    config = tiny_config(**{**sections, **table, "deployment": deployment})
    nodes = Fleet.of(Task(config)).nodes({})
    with closing(SerialExecutor("mest_fed.client.app:app")) as executor:
        grid = kind(nodes, executor, run_config=to_flat(config))
        grid.last = last
        run_server_app(build_server_app(), grid, run_config=to_flat(config))
    return folder


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    """Let the first run alone write its report, which takes a process and matplotlib."""
    monkeypatch.setattr(deployed, "write_report", lambda folder: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return deploy(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.soak
def test_the_folder_holds_what_a_simulation_leaves(whole):
    assert {path.name for path in whole.iterdir()} == {
        "config.toml",
        "rounds.jsonl",
        "clients.jsonl",
        "summary.json",
        "checkpoints",
        "model.pt",
        "encoding.json",
        "report.html",
        "lock",
        "owner",
    }
    assert from_table(read_toml(whole / "config.toml"), "it").run.rounds == 4
    assert [row["round"] for row in rows(whole, "rounds.jsonl")] == [0, 1, 2, 3, 4]
    assert [row["status"] for row in rows(whole, "clients.jsonl")] == ["ok"] * 12
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["clients_trained"], summary["tiers"][0]["clients"]) == (12, 4)
    assert summary["virtual_seconds"] == summary["wall_seconds"] > 0


def test_the_encoding_is_that_of_the_data(whole):
    given = {"encoding": str(whole / "encoding.json")}
    assert Task(tiny_config(data=given)).encoding == Task(tiny_config()).data.encoding


def test_a_server_without_the_data_leaves_the_encoding_that_it_was_given(whole):
    given = {"encoding": str(whole / "encoding.json"), "name": "npz", "path": "nowhere.npz"}
    assert Task(tiny_config(data=given)).encoding == Task(tiny_config()).data.encoding


def test_the_model_is_a_plain_one(whole):
    config = tiny_config(**CONFIG, model={"width": 0.25})
    dense = Task(
        config.model_copy(update={"sparsity": tiny_config(sparsity={"method": "dense"}).sparsity})
    )
    state = torch.load(whole / "model.pt", weights_only=True)
    dense.build_model().load_state_dict(state)
    active = sum(int((state[f"{name}.weight"] != 0).sum()) for name in Task(config).spec.layouts)
    share = active / Task(config).spec.sparse_weights
    summary = json.loads((whole / "summary.json").read_text())
    assert share == pytest.approx(summary["achieved_density"], rel=0.02)


@pytest.mark.soak
def test_a_run_that_was_stopped_goes_on_to_the_same_model(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        deploy(tmp_path / "run", last=2)
    summary = load_run(tmp_path / "run", unfinished=True).summary
    assert (summary.deployed, summary.devices, summary.rounds) == (True, 4, 2)
    assert [node.partition for node in summary.nodes] == [0, 1, 2, 3]
    folder = deploy(tmp_path / "run", deployment={"resume": True})
    summaries = [json.loads((each / "summary.json").read_text()) for each in (whole, folder)]
    assert summaries[0]["model_sha256"] == summaries[1]["model_sha256"]
    assert summaries[0]["clients_trained"] == summaries[1]["clients_trained"]
    assert [each["partition"] for each in summaries[1]["nodes"]] == [0, 1, 2, 3]
    assert [row["round"] for row in rows(folder, "rounds.jsonl")] == [0, 1, 2, 3, 4]
    seconds = [row["wall_seconds"] for row in rows(folder, "rounds.jsonl")]
    assert seconds == sorted(seconds)
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {f"round-00000{number}.npz" for number in (0, 3, 4)}  # every hundredth, the last


@pytest.mark.soak
def test_a_run_that_was_stopped_before_its_first_round_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        deploy(tmp_path / "run", last=0)
    folder = deploy(tmp_path / "run", deployment={"resume": True})
    assert [row["round"] for row in rows(folder, "rounds.jsonl")] == [0, 1, 2, 3, 4]


@pytest.mark.soak
def test_instructions_on_their_way_are_not_sent_to_the_devices_of_another_run(tmp_path):
    server = {"mode": "buffered", "concurrency": 3, "buffer": 2}
    with pytest.raises(KeyboardInterrupt):
        deploy(tmp_path / "run", last=2, server=server)
    folder = deploy(tmp_path / "run", server=server, deployment={"resume": True})
    assert {row["status"] for row in rows(folder, "clients.jsonl")} == {"ok"}
    assert [row["round"] for row in rows(folder, "rounds.jsonl")] == [0, 1, 2, 3, 4]


def test_a_folder_is_not_overwritten(whole):
    with pytest.raises(InputError, match=r"deployment\.folder = .* is not empty; .*resume=true"):
        deploy(whole)
    with pytest.raises(InputError, match=r"deployment\.resume=true: the run in .* is finished"):
        deploy(whole, deployment={"resume": True})


@pytest.mark.soak
def test_only_the_run_that_began_goes_on(tmp_path):
    with pytest.raises(InputError, match=r"deployment\.resume=true: no run in"):
        deploy(tmp_path / "run", deployment={"resume": True})
    with pytest.raises(KeyboardInterrupt):
        deploy(tmp_path / "run", last=1)
    with pytest.raises(InputError, match=r"run\.rounds = 5 is not allowed .*; allowed: 4"):
        deploy(tmp_path / "run", run={"rounds": 5}, deployment={"resume": True})


OWN_MODEL = """
from torch import nn

from {helper} import HIDDEN


def build(num_classes):
    layers = nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 32), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, num_classes))
"""


def test_the_users_own_code_is_sealed(tmp_path):
    model, helper = tmp_path / "own.py", tmp_path / "deployed_sizes.py"
    model.write_text(OWN_MODEL.format(helper=helper.stem))
    helper.write_text("HIDDEN = 32\n")
    own = {"name": f"{model}:build", "width": 1.0}
    with pytest.raises(KeyboardInterrupt):
        deploy(tmp_path / "run", last=1, model=own)
    helper.write_text("HIDDEN = 16\n")
    changed = rf"deployment\.resume=true: {helper} has changed since the run first read it$"
    with pytest.raises(InputError, match=changed):
        deploy(tmp_path / "run", model=own, deployment={"resume": True})
    helper.write_text("HIDDEN = 32\n")
    deploy(tmp_path / "run", model=own, deployment={"resume": True})


def test_the_bundle_of_another_version_is_in_another_folder(tmp_path, monkeypatch):
    old, new = tmp_path / "1", tmp_path / "2"
    for bundle in (old, new):
        bundle.mkdir()
        (bundle / "bundled.py").write_text("")
    config = tiny_config()
    sealed = RunFolder(tmp_path / "run", bundle=old)
    monkeypatch.setattr("mest_fed.server.seal.own_files", lambda _: [old / "bundled.py"])
    seal = sealed.seal(config)
    RunFolder(tmp_path / "run", bundle=new).check_seal(seal)
    (new / "bundled.py").write_text("a = 1\n")
    with pytest.raises(InputError, match=rf"{new}/bundled\.py has changed"):
        RunFolder(tmp_path / "run", bundle=new).check_seal(seal)


@pytest.mark.soak
def test_a_folder_has_one_run_at_a_time(tmp_path):
    class Second(StoppedAfter):
        """Goes on with the run while it runs."""

        def push_messages(self, messages):
            with pytest.raises(InputError, match=r"run is in use by another run \(process "):
                deploy(tmp_path / "run", deployment={"resume": True})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy(tmp_path / "run", kind=Second)
    deploy(tmp_path / "run", deployment={"resume": True})


def test_a_simulation_has_an_option_for_its_folder(tmp_path):
    config = tiny_config(deployment={"folder": "runs/here"})
    with pytest.raises(InputError, match=r"deployment\.folder = 'runs/here' .*; allowed: --out"):
        open_run("tiny", config, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_what_goes_on_has_a_name():
    with pytest.raises(InputError, match=r"deployment\.resume = True is not allowed without"):
        tiny_config(deployment={"resume": True})


def test_the_console_has_the_runs_own_lines_alone_with_its_own_numbers(tmp_path, caplog):
    caplog.set_level(logging.INFO, "flwr")  # commands of this process may have quietened it
    stream, colored = FLOWER_CONSOLE.stream, FLOWER_CONSOLE.colored
    with (tmp_path / "console.txt").open("w", encoding="utf-8") as file:
        FLOWER_CONSOLE.setStream(file)
        try:
            with pytest.raises(KeyboardInterrupt):
                deploy(tmp_path / "run", last=2)
            deploy(tmp_path / "run", deployment={"resume": True})
        finally:
            FLOWER_CONSOLE.setStream(stream)
            FLOWER_CONSOLE.colored = colored
    said = (tmp_path / "console.txt").read_text(encoding="utf-8")
    found = [int(each) for each in re.findall(r" round (\d+): ", said)]
    assert found == [0, 1, 2, 3, 4]
    assert "going on after round 2" in said
    for foreign in ("\x1b[", "[ROUND", "Final results", "(empty!)", "Starting"):
        assert foreign not in said


def test_measured_peaks_are_those_that_devices_of_a_plan_reported():
    task = Task(tiny_config())
    small, large = (task.plan(size, "rpi-4") for size in (8_000_000, 80_000_000))
    budgets = {1: small.budget, 2: large.budget, 3: small.budget}
    nodes = [Node(n, n, "rpi-4", each, 0.1, 8, 1, 10, 0) for n, each in budgets.items()]

    def row(partition, size):
        reported = None if size is None else {"measured_peak_bytes": size}
        return {"partition": partition, "reported": reported}

    rows = [row(1, 300), row(2, 900), row(3, 500), row(3, 400), row(1, None), row(9, 10**9)]
    tiers = tier_plans(task, nodes)
    assert [(tier.clients, tier.plan.budget) for tier in tiers] == [(2, 8_000_000), (1, 80_000_000)]
    assert [tier.plan.shape for tier in tiers] == [small.shape, large.shape]
    few, many = (tier.plan for tier in tiers)
    assert reported_peaks(tiers, nodes, rows) == {few: 500, many: 900}
    assert reported_peaks(tiers, nodes, [row(2, 900), row(1, None)]) == {many: 900}
    found = {each.partition: each for each in real_devices(nodes, rows)}
    assert {n: (each.budget_bytes, each.measured_peak_bytes) for n, each in found.items()} == {
        1: (8_000_000, 300),
        2: (80_000_000, 900),
        3: (8_000_000, 500),
    }


def test_a_tier_takes_what_its_device_with_the_dearest_number_of_examples_does():
    task = Task(tiny_config())
    plan, batch = task.plan(8_000_000, "rpi-4"), task.config.training.batch_size
    counts = (batch, batch + 1)
    taken = [task.footprint_on(plan, each).total for each in counts]
    assert taken[0] < taken[1] <= plan.footprint.total
    nodes = [Node(n, n, "rpi-4", plan.budget, 0.1, 8, 1, each, 0) for n, each in enumerate(counts)]
    for some in (nodes, nodes[::-1], nodes[:1]):
        (tier,) = tier_plans(task, some)
        assert tier.plan.footprint.total == taken[len(some) - 1]


def test_devices_without_a_profile_are_of_one_kind():
    task = Task(tiny_config())
    names = {1: "rpi-4", 2: "shed", 3: "board.toml", 4: "attic"}
    budgets = {1: 8_000_000, 2: 80_000_000, 3: 9_000_000, 4: 80_000_000}
    nodes = [Node(n, n, name, budgets[n], 0.1, 8, 1, 10, 0) for n, name in names.items()]
    tiers = tier_plans(task, nodes)
    assert [(tier.name, tier.clients, tier.plan.budget) for tier in tiers] == [
        ("rpi-4", 1, 8_000_000),
        ("", 1, 9_000_000),
        ("", 2, 80_000_000),
    ]
    peak = {"partition": 3, "reported": {"measured_peak_bytes": 400}}
    assert reported_peaks(tiers, nodes, [peak]) == {tiers[1].plan: 400}


@pytest.mark.parametrize(
    ("values", "total"),
    [([], 0), ([0.0, 2.0, None], 2.0), ([0.0, None], None), ([0.0], 0.0)],
)
def test_energy_that_is_not_known_is_no_zero(values, total):
    assert known_sum(values) == total
