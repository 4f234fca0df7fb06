"""A real device and its twin: this machine is calibrated, and a lean node trains on it."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mest_fed.cli.server import server
from mest_fed.cli.twin import Pair, compare_with_twins, print_comparison
from mest_fed.devices import Work, load_profile, train_seconds
from mest_fed.devices.calibration import command
from mest_fed.errors import InputError
from mest_fed.run_rows.rounds import ClientReport
from mest_fed.runtime import native_table
from mest_fed.server import deployed
from mest_fed.simulation.report.load import load_run

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(not native_table.available(), reason="no compiled runtime"),
]
ROUNDS, EXAMPLES = 3, 200


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    out = tmp_path_factory.mktemp("profile") / "here.toml"
    command.calibrate(command.Wanted(out, "rpi-4", 1, None, None, *command.QUICK))
    return str(out)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the run of a lean node that is a process of its own."""
    folder = tmp_path_factory.mktemp("twin")
    rng = np.random.default_rng(0)
    data = folder / "mine.npz"
    inputs = rng.integers(0, 17, (EXAMPLES, 1, 8, 8), dtype=np.uint8)
    np.savez(data, inputs=inputs, targets=np.arange(EXAMPLES) % 10)
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--link", where, "--data", str(data), "--state", str(folder / "state")]
    options += ["--device", "rpi-4", "--name", "twin", "--insecure", "--give-up", "60"]
    settings = [
        f"run.rounds={ROUNDS}", "fleet.devices=1", "fleet.mix='rpi-4:1'", "server.min_nodes=1",
        "server.clients_per_round=1", "server.central_evaluation=false",
        "server.evaluate_clients_every=0", "model.name='resnet8'", "training.batch_size=16",
    ]  # fmt: skip
    node = subprocess.Popen(
        [sys.executable, "-m", "mest_fed.link.node", *options], stderr=subprocess.DEVNULL
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployed, "write_report", lambda folder: None)
        try:
            out = folder / "run"
            server(preset="quickstart", settings=settings, listen=where, insecure=True, out=out)
        finally:
            node.kill()
            node.wait()
    return load_run(out)


def test_a_row_has_what_the_device_said_of_itself(run):
    assert [task.round for task in run.tasks] == [1, 2, 3]
    for task in run.tasks:
        said = task.reported
        assert said.dense_flops > 0 < said.sparse_flops
        assert said.core_seconds > 0 < said.moved_bytes
        assert 0 < said.seconds <= task.train_seconds
        assert said.predicted_peak_bytes > 0
    if os.access("/proc/self/clear_refs", os.W_OK):
        reports = [task.reported for task in run.tasks]
        most = max(it.measured_peak_bytes for it in reports)
        assert 0.2 < most / reports[0].predicted_peak_bytes < 2


def test_its_twin_takes_about_as_long(run, calibrated, capsys):
    """Within a factor of 20: other work on this machine takes its part of both."""
    (twin,) = compare_with_twins(run, calibrated)
    assert twin.profile.name == "here"
    assert len(twin.rounds.predicted) == len(twin.own.predicted) == ROUNDS
    assert 1 / 20 < max(twin.own.ratios) < 20
    assert all(a > b for a, b in zip(twin.rounds.predicted, twin.own.predicted, strict=True))
    print_comparison(run.folder, calibrated)
    lines = capsys.readouterr().out.splitlines()
    header = next(number for number, line in enumerate(lines) if "device" in line.split())
    # Its own examples have a number of ten digits, which nobody knows it by.
    assert lines[header + 1].strip() == "own data 1, rpi-4, as here"
    for line, what in zip(lines[header + 2 :], ("round", "its own part"), strict=False):
        assert line.strip().startswith(what)
    assert max(map(len, lines)) <= 80


def test_devices_are_named_as_people_know_them(run, calibrated):
    task = run.tasks[0]
    kinds = ((0, "rpi-4"), (7_000_000_001, "rpi-4"), (8_000_000_002, "phone-low"))
    tasks = tuple(replace(task, partition=number, device=name) for number, name in kinds)
    found = compare_with_twins(replace(run, tasks=tasks))
    assert [twin.name for twin in found] == [
        "partition 0, rpi-4", "own data 1, rpi-4", "own data 2, phone-low",
    ]  # fmt: skip
    assert [twin.profile.name for twin in found] == ["rpi-4", "rpi-4", "phone-low"]
    strange = tuple(replace(task, partition=it, device=f"board-{it}") for it in (1, 2))
    with pytest.raises(InputError, match="devices called board-1, board-2: no built-in profile"):
        compare_with_twins(replace(run, tasks=strange))


def test_a_board_is_predicted_slower_than_this_machine(run):
    (twin,) = compare_with_twins(run)
    assert twin.profile.name == "rpi-4"
    profile, said = load_profile("rpi-4"), run.tasks[0].reported
    work = Work(said.dense_flops, said.sparse_flops, said.moved_bytes, said.core_seconds)
    assert twin.own.predicted[0] > train_seconds(profile, work, "block")


def without_reports(run):
    return replace(run, tasks=tuple(replace(task, reported=None) for task in run.tasks))


def test_what_cannot_be_compared_is_one_line(run):
    with pytest.raises(InputError, match=r"no row holds what a device reported"):
        compare_with_twins(without_reports(run))
    renamed = replace(run, tasks=tuple(replace(task, device="mine") for task in run.tasks))
    with pytest.raises(InputError, match=r"called mine: .* allowed: --device PROFILE"):
        compare_with_twins(renamed)
    with pytest.raises(InputError, match=r"does not exist"):
        print_comparison(Path("nowhere"), None)


def test_a_node_of_flowers_starts_a_process_for_each_message(run):
    """It is known by what it does not tell: seconds of its own."""
    said = ClientReport(dense_flops=11.5e9, sparse_flops=0, moved_bytes=0, core_seconds=0)
    task = replace(run.tasks[0], reported=said, bytes_down=0, bytes_up=0, train_seconds=40.0)
    (twin,) = compare_with_twins(replace(run, tasks=(task,)), "rpi-4")
    profile = load_profile("rpi-4")
    expected = profile.message_seconds + 1.0 + 2 * profile.latency
    assert twin.rounds.predicted == (pytest.approx(expected),)
    assert (twin.own, twin.peak) == (None, None)


def test_a_pair_by_hand():
    pair = Pair((1.0, 2.0, 6.0), (2.0, 2.0, 2.0))
    assert (pair.ratios, pair.ratio, pair.quartiles) == ([0.5, 1.0, 3.0], 1.0, (0.75, 2.0))
    assert Pair((1.0,), (2.0,)).quartiles == (0.5, 0.5)
