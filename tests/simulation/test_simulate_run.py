"""A simulated run as a whole: what it leaves behind, that it repeats, that every option runs."""

import json
import tomllib
from importlib.resources import files

import pytest
from tiny_run import (
    Recorder,
    assert_same_run,
    budget_for,
    read_rows,
    read_summary,
    start,
    tiny_config,
)

from mest_fed.config import from_table
from mest_fed.data import load_partitions
from mest_fed.run_rows.row import as_row
from mest_fed.server.checkpoint import load_checkpoint
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.statistics import energy_by_tier

#: What summary.json promises.
SUMMARY = {
    "preset",
    "seed",
    "rounds",
    "dataset",
    "method",
    "scheme",
    "target_density",
    "achieved_density",
    "final_accuracy",
    "bytes_up",
    "bytes_down",
    "virtual_seconds",
    "wall_seconds",
    "clients_trained",
    "clients_failed",
    "over_budget",
    "energy_joules",
    "tiers",
    "model_sha256",
}
TIER = {
    "profile",
    "clients",
    "budget_bytes",
    "predicted_peak_bytes",
    "measured_peak_bytes",
    "density",
    "micro_batch",
}

#: It takes no micro-batch below 8, so a small budget takes a lower density.
BATCH_NORM = {"width": 0.25, "norm": "batch"}


@pytest.fixture(scope="module")
def tiers():
    budgets = {
        "rpi-3b-plus": budget_for(0.1, model=BATCH_NORM),
        "rpi-5": budget_for(0.05, model=BATCH_NORM),
    }
    fleet = {"mix": "rpi-4:1, rpi-5:1, rpi-3b-plus:1", "budgets": budgets}
    return {"model": BATCH_NORM, "fleet": fleet}


@pytest.fixture(scope="module")
def shown():
    return Recorder()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiers, shown):
    return start(tmp_path_factory.mktemp("runs") / "a" / "b", tiny_config(**tiers), display=shown)


def test_the_folder_holds_all_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.toml",
        "kernels.json",
        "memory.json",
        "rounds.jsonl",
        "clients.jsonl",
        "summary.json",
        "model.pt",
        "encoding.json",
        "partitions.npz",
        "states",
        "checkpoints",
        "provenance.json",
        "labels.json",
        "owner",
        "lock",
    }
    assert checkpoints(finished) == [0, 3]


def checkpoints(folder):
    return sorted(int(path.stem[-6:]) for path in (folder / "checkpoints").iterdir())


def test_the_summary_holds_all_keys(finished):
    summary = read_summary(finished)
    assert set(summary) >= SUMMARY
    for tier in summary["tiers"]:
        assert set(tier) >= TIER
    assert (summary["preset"], summary["seed"], summary["rounds"]) == ("tiny", 5, 3)
    assert (summary["dataset"], summary["method"]) == ("digits", "mest-ems")
    assert summary["target_density"] == 0.2
    assert summary["achieved_density"] == pytest.approx(0.2, abs=0.01)
    assert len(summary["model_sha256"]) == 64


def test_the_summary_adds_up(finished):
    summary, rounds = read_summary(finished), read_rows(finished, "rounds")
    clients = read_rows(finished, "clients")
    for key in ("bytes_up", "bytes_down", "energy_joules"):
        assert summary[key] == sum(row[key] for row in rounds)
    for key in ("virtual_seconds", "wall_seconds"):
        assert summary[key] == rounds[-1][key] > 0
    done = [row for row in clients if row["status"] == "ok"]
    assert summary["clients_trained"] == len(done) == 9
    assert summary["clients_failed"] == summary["over_budget"] == 0
    assert summary["final_accuracy"] == rounds[-1]["accuracy"]
    assert 0 <= summary["final_accuracy"] <= 1


def test_the_report_accounts_for_all_energy(finished):
    uses = energy_by_tier(load_run(finished))
    assert {use.title for use in uses} > {"evaluations"}
    for use in uses:
        assert (use.other > 0) == (use.title == "evaluations")
    total = sum(use.total for use in uses)
    assert total == pytest.approx(read_summary(finished)["energy_joules"])


def test_tiers_hold_to_their_budgets(finished):
    tiers = {tier["profile"]: tier for tier in read_summary(finished)["tiers"]}
    assert sum(tier["clients"] for tier in tiers.values()) == 12
    assert [tiers[p]["density"] for p in ("rpi-4", "rpi-3b-plus", "rpi-5")] == [0.2, 0.1, 0.05]
    for tier in tiers.values():
        assert tier["predicted_peak_bytes"] <= tier["budget_bytes"]
        assert sum(tier["parts"].values()) == tier["predicted_peak_bytes"]
        assert tier["measured_peak_bytes"] is None
    for row in read_rows(finished, "clients"):
        bound = tiers[row["device"]]["density"] * 1.5  # at most the soft bound's first stage
        assert row["density"] <= bound * 1.05


def test_a_row_for_every_round_and_client(finished):
    rounds, clients = read_rows(finished, "rounds"), read_rows(finished, "clients")
    assert [row["round"] for row in rounds] == [0, 1, 2, 3]
    assert [row["round"] for row in clients] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for row in rounds[1:]:
        cohort = [client for client in clients if client["round"] == row["round"]]
        assert [c["partition"] for c in cohort] == sorted({c["partition"] for c in cohort})
        assert row["trained"] == 3
        began = rounds[row["round"] - 1]["virtual_seconds"]
        assert {client["start_seconds"] for client in cohort} == {began}
        trained = sum(client["train_loss"] * client["presented"] for client in cohort)
        assert row["train_loss"] == pytest.approx(trained / sum(c["presented"] for c in cohort))
    # Clients are asked after every second round and the last; their traffic is in the rounds'.
    assert [row["client_accuracy"] is not None for row in rounds] == [False, False, True, True]
    for number in (1, 2, 3):
        of_training = sum(row["bytes_down"] for row in clients if row["round"] == number)
        assert (rounds[number]["bytes_down"] > of_training) == (number != 1)
    assert (rounds[0]["bytes_up"], rounds[0]["virtual_seconds"]) == (0, 0)


def test_a_round_lasts_as_long_as_its_slowest_device(finished):
    first = read_rows(finished, "rounds")[1]
    parts = ("download_seconds", "setup_seconds", "train_seconds", "upload_seconds")
    slowest = max(
        sum(row[part] for part in parts)
        for row in read_rows(finished, "clients")
        if row["round"] == 1
    )
    assert first["virtual_seconds"] == pytest.approx(slowest)


def test_the_configuration_is_resolved(finished, tiers):
    table = tomllib.loads((finished / "config.toml").read_text(encoding="utf-8"))
    assert table["training"]["momentum"] == 0.9  # a default, spelled out
    assert from_table(table, "config.toml") == tiny_config(**tiers)


def test_the_partitions_are_left_for_devices(finished):
    parts = load_partitions(finished / "partitions.npz")
    assert len(parts) == 12
    assert sum(map(len, parts)) == 1438  # the digits but for the test set


def test_the_last_checkpoint_is_the_model_of_the_summary(finished):
    arrays, facts = load_checkpoint(finished / "checkpoints" / "round-000003.npz")
    assert facts["round"] == 3
    active = sum(len(a) for key, a in arrays.items() if key.startswith("masks|"))
    assert active > 0


def test_the_display_is_called(finished, shown):
    assert finished.exists()
    assert (shown.begun, shown.rounds, shown.ended) == ((3, 0), [0, 1, 2, 3], 1)


def test_the_same_seed_gives_the_same_run(finished, tiers, tmp_path):
    assert_same_run(finished, start(tmp_path / "again", tiny_config(**tiers)))


@pytest.mark.soak
def test_another_seed_gives_another_run(finished, tiers, tmp_path):
    other = start(tmp_path / "other", tiny_config(**tiers, run={"rounds": 3, "seed": 6}))
    assert read_summary(other)["model_sha256"] != read_summary(finished)["model_sha256"]


def test_checkpoints_come_when_due(tmp_path):
    run = {"rounds": 5, "checkpoint_every": 2}
    server = {"clients_per_round": 1, "evaluate_every": 5, "evaluate_clients_every": 0}
    folder = start(tmp_path / "run", tiny_config(run=run, server=server))
    assert checkpoints(folder) == [0, 2, 4, 5]


# Every option runs, and to the end without a failure.


def assert_runs(tmp_path, **sections):
    sections = {"run": {"rounds": 2, "seed": 5}} | sections
    folder = start(tmp_path / "run", tiny_config(**sections))
    reasons = {row["reason"] for row in read_rows(folder, "clients")}
    assert reasons == {None}
    summary = read_summary(folder)
    assert summary["clients_trained"] == 6
    return summary


@pytest.mark.soak
@pytest.mark.parametrize("mutation", ["server", "client"])
@pytest.mark.parametrize("method", ["dense", "static", "set", "rigl", "mest-em", "mest-ems"])
def test_every_method(tmp_path, method, mutation):
    if (method, mutation) == ("rigl", "server"):
        pytest.skip("rigl grows on clients alone; the configuration refuses it")
    sparsity = {"method": method, "mutation": mutation, "density": 0.2}
    summary = assert_runs(tmp_path, sparsity=sparsity)
    density = 1.0 if method == "dense" else 0.2
    assert summary["target_density"] == density
    assert summary["achieved_density"] == pytest.approx(density, abs=0.01)
    assert [tier["density"] for tier in summary["tiers"]] == [density]


@pytest.mark.soak
@pytest.mark.parametrize("mutation", ["server", "client"])
@pytest.mark.parametrize("scheme", ["unstructured", "block:2", "pattern", "channel"])
def test_every_scheme(tmp_path, scheme, mutation):
    sparsity = {"scheme": scheme, "mutation": mutation, "density": 0.25}
    summary = assert_runs(tmp_path, sparsity=sparsity)
    assert summary["scheme"] == scheme
    assert summary["achieved_density"] == pytest.approx(0.25, abs=0.05)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("upload", "download"),
    [("fp16", "fp16"), ("bf16", "bf16"), ("int8", "fp32"), ("int8", "fp16"), ("fp32", "bf16")],
)
def test_every_codec(tmp_path, upload, download):
    summary = assert_runs(tmp_path, wire={"upload": upload, "download": download})
    assert summary["final_accuracy"] is not None


@pytest.mark.parametrize("mutation", ["server", "client"])
def test_8_bit_uploads_while_masks_change(tmp_path, mutation):
    run, sparsity = {"rounds": 3, "seed": 5}, {"mutation": mutation, "method": "mest-em"}
    folder = start(
        tmp_path / "run",
        tiny_config(run=run, sparsity=sparsity, wire={"upload": "int8", "download": "bf16"}),
    )
    assert {row["status"] for row in read_rows(folder, "clients")} == {"ok"}


@pytest.mark.soak
def test_a_coarser_codec_sends_less(tmp_path):
    sent = []
    for codec in ("fp32", "fp16", "int8"):
        folder = start(tmp_path / codec, tiny_config(run={"rounds": 1}, wire={"upload": codec}))
        sent.append(read_summary(folder)["bytes_up"])
    assert sent[0] > sent[1] > sent[2]


def test_forgetting(tmp_path):
    config = tiny_config(
        run={"rounds": 4, "seed": 5},
        forgetting={"fraction": 0.5, "start": 0.5, "readmit": True},
        training={"local_epochs": 2},
        server={"evaluate_every": 4, "evaluate_clients_every": 0},
    )
    rows = read_rows(start(tmp_path / "run", config), "clients")
    trained = [row for row in rows if row["status"] == "ok"]
    early = [row for row in trained if row["round"] <= 2]
    late = [row for row in trained if row["round"] == 3]
    assert all(row["presented"] == 2 * row["examples"] for row in early)
    assert sum(row["presented"] for row in late) < 2 * sum(row["examples"] for row in late)


@pytest.mark.soak
@pytest.mark.parametrize("optimizer", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_server_optimizers(tmp_path, optimizer):
    assert_runs(
        tmp_path, server={"optimizer": optimizer, "learning_rate": 0.1, "clients_per_round": 3}
    )


@pytest.mark.soak
def test_another_model_and_partition(tmp_path):
    assert_runs(tmp_path, model={"name": "cnn2", "width": 0.25}, data={"partition": "linear"})


def test_no_evaluation(tmp_path):
    server = {"central_evaluation": False, "evaluate_clients_every": 0, "clients_per_round": 3}
    summary = assert_runs(tmp_path, server=server)
    assert summary["final_accuracy"] is None
    assert summary["final_client_accuracy"] is None


def test_a_run_that_diverges_ends_in_order(tmp_path):
    folder = start(tmp_path / "run", tiny_config(training={"learning_rate": 1e4}))
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.json*"))
    assert "NaN" not in text
    assert "Infinity" not in text
    rounds = read_rows(folder, "rounds")
    assert len(rounds) == 4
    assert any(row["failed"] or row["loss"] is None for row in rounds)


def test_a_deadline_costs_the_late_their_update(tmp_path):
    mix = {"mix": "rpi-zero-2w:1, rpi-5:1"}
    same = {"data": {"partition": "iid"}, "server": {"clients_per_round": 6}}
    same["run"] = {"rounds": 2}
    folder = start(tmp_path / "free", tiny_config(fleet=mix, **same))
    seconds = {}
    for row in read_rows(folder, "clients"):
        parts = ("download_seconds", "setup_seconds", "train_seconds", "upload_seconds")
        spent = sum(row[part] for part in parts)
        if row["status"] == "ok":
            seconds.setdefault(row["device"], []).append(spent)
    deadline = (min(seconds["rpi-zero-2w"]) + max(seconds["rpi-5"])) / 2
    assert max(seconds["rpi-5"]) < deadline < min(seconds["rpi-zero-2w"])
    folder = start(tmp_path / "tight", tiny_config(fleet=mix | {"deadline": deadline}, **same))
    for row in read_rows(folder, "clients"):
        if row["reason"] != "device was away":
            late = row["device"] == "rpi-zero-2w"
            assert row["status"] == ("late" if late else "ok")
            assert ("missed the deadline" in (row["reason"] or "")) == late
    last = read_rows(folder, "rounds")[-1]
    # The server waits as long and no longer in 2 rounds of training and one of evaluation.
    assert last["virtual_seconds"] <= 3 * deadline * (1 + 1e-9)


def test_a_profile_of_ones_own(tmp_path, monkeypatch):
    write_profile(tmp_path / "board.toml", availability=0.4)
    monkeypatch.chdir(tmp_path)
    config = tiny_config(fleet={"mix": "board.toml:2, rpi-4:1", "budgets": "board.toml:900MB"})
    folder = start(tmp_path / "run", config)
    tiers = {tier["profile"]: tier for tier in read_summary(folder)["tiers"]}
    assert tiers["board"]["budget_bytes"] == 900_000_000
    assert (tiers["board"]["clients"], tiers["rpi-4"]["clients"]) == (8, 4)
    away = [row for row in read_rows(folder, "clients") if row["reason"] == "device was away"]
    assert {row["device"] for row in away} == {"board"}


def write_profile(path, availability):
    """Write a profile like that of a Raspberry Pi 4, with another availability."""
    text = (files("mest_fed.devices") / "profiles" / "rpi-4.toml").read_text(encoding="utf-8")
    lines = [
        f"availability = {availability}" if line.startswith("availability = 0") else line
        for line in text.splitlines()
    ]
    assert f"availability = {availability}" in lines
    path.write_text("\n".join(lines), encoding="utf-8")


#: What rows of a simulation lack.
LACKING = ("type", "reported")


def test_what_a_run_writes_is_what_the_report_reads(finished):
    read = load_run(finished)
    assert [as_row(row) for row in read.rounds] == read_rows(finished, "rounds")
    assert [as_row(row, optional=LACKING) for row in read.tasks] == read_rows(finished, "clients")
    written = json.loads((finished / "summary.json").read_text())
    summary = as_row(read.summary, optional=("reason", "unfinished", "why_torch"))
    assert json.loads(json.dumps(summary)) == written
    assert [*summary] == [*written]
    assert [*as_row(read.tasks[0], optional=LACKING)] == [*read_rows(finished, "clients")[0]]
