"""What a real device has left beside Flower's node: by hand, and the same from three commands."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mest_fed.cli.baseline import RECORDED, Baseline, ProcessMemory, measure_baseline
from mest_fed.cli.device_room import DeviceRoom
from mest_fed.cli.environment import node_environment
from mest_fed.devices import load_profile, profile_names
from mest_fed.errors import MestFedError

MB = 10**6
BASELINE = Baseline(
    ProcessMemory(300 * MB, 0, 0, 50 * MB), {"SuperNode": 90 * MB, "supervisor": 60 * MB}
)
BOARD = replace(load_profile("rpi-4"), memory_bytes=1000 * MB, system_bytes=200 * MB)
PLAN = ("plan", "--model", "resnet8", "--width", "0.5", "--batch", "4")
RECORD = Path(__file__).parents[2] / "docs" / "benchmarks" / "node-memory-2026-11-30.json"


def test_by_hand():
    assert BASELINE.together == 500 * MB
    assert (BASELINE.taken("cgroup v2"), BASELINE.taken("RLIMIT_AS")) == (500 * MB, 300 * MB)
    room = DeviceRoom(BOARD, 260 * MB, BASELINE)  # 95% of 800 MB are 760 MB
    assert (room.left, room.fits) == (260 * MB, True)
    assert not DeviceRoom(BOARD, 260 * MB + 1, BASELINE).fits
    assert DeviceRoom(BOARD, 1, BASELINE, margin=0.0).left == 300 * MB
    small = DeviceRoom(replace(BOARD, memory_bytes=600 * MB), 1, BASELINE)
    assert (small.left, small.fits, small.short()) == (-120 * MB, False, "none")
    assert (
        "120 MB are lacking before training begins, and the budget of 1 B does not fit"
        in small.in_words()
    )


def test_a_lean_node_fits_where_flowers_does_not():
    zero = load_profile("rpi-zero-2w")
    room = DeviceRoom(zero, zero.budget_bytes)
    assert not room.fits
    assert room.as_table()["lean"]["fits"]
    assert "A lean node (mest-fed node) takes 61.8 MB" in room.in_words()
    assert "344 MB are left for training, and the budget of 48 MB fits." in room.in_words()
    sources = {**zero.sources, "node_bytes": "measured: here"}
    own = DeviceRoom(replace(zero, node_bytes=400 * MB, sources=sources), 50 * MB)
    assert "takes 400 MB (measured): " in own.in_words()
    assert own.as_table()["lean"]["fits"] is False


def test_a_device_whose_system_is_not_known():
    room = DeviceRoom(replace(BOARD, system_bytes=None), 10**12, BASELINE)
    assert (room.as_table(), room.short()) == (None, "?")
    assert "is not known: its profile does not say" in room.in_words()
    room.check()


def test_built_in_boards_but_the_smallest_hold_their_budget():
    profiles = [each for each in map(load_profile, profile_names()) if each.system_bytes]
    rooms = {each.name: DeviceRoom(each, each.budget_bytes) for each in profiles}
    assert {name for name, room in rooms.items() if not room.fits} == {"rpi-zero-2w"}
    assert rooms["rpi-zero-2w"].left < 0
    assert (
        "simulations and lean nodes alone" in rooms["rpi-zero-2w"].profile.sources["budget_bytes"]
    )


@pytest.mark.soak
@pytest.mark.parametrize("name", ["rpi-zero-2w", "rpi-3b-plus", "phone-low"])
def test_devices_plan_and_client_say_the_same(says, fails, monkeypatch, name):
    words = DeviceRoom(load_profile(name), load_profile(name).budget_bytes).in_words()
    assert words in " ".join(says("devices", name).split())
    assert words in " ".join(says(*PLAN, "--device", name).split())
    (device,) = json.loads(says("devices", name, "--json"))
    assert json.loads(says(*PLAN, "--device", name, "--json"))["node"] == device["node"]
    monkeypatch.setattr("mest_fed.cli.client.measure_baseline", lambda _: RECORDED)
    node = ("client", "--superlink", "127.0.0.1:8000", "--insecure", "--partition", "0")
    if name == "rpi-zero-2w":
        assert words in fails(*node, "--device", name)
        return

    def start(*_):
        raise SystemExit(0)

    monkeypatch.setattr("mest_fed.cli.client.ask", lambda *_: None)
    monkeypatch.setattr("mest_fed.cli.client.wait_for_superlink", lambda *_: None)
    monkeypatch.setattr("mest_fed.cli.client.become_supervisor", start)
    monkeypatch.setattr("mest_fed.cli.node_memory.limit_of_process", lambda: None)
    monkeypatch.setattr("mest_fed.cli.node_memory.memory_of_machine", lambda: None)
    assert words in says(*node, "--device", name)


def test_the_list_says_what_is_left(says):
    heading, *lines = [line.split("\t") for line in says("devices").splitlines()]
    left = {line[0]: line[heading.index("node leaves")] for line in lines}
    lean = {line[0]: line[heading.index("lean leaves")] for line in lines}
    # 95% of 1847.48 MB less 637.7 MB are 1117.4 MB.
    assert (left["rpi-4"], left["rpi-zero-2w"], left["phone-low"]) == ("1.12 GB", "none", "?")
    # 95% of 426.9 MB less 61.8 MB are 343.7 MB.
    assert (lean["rpi-zero-2w"], lean["phone-low"]) == ("344 MB", "?")


def test_the_record_is_what_was_measured():
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    assert found["imports"]["together"] == pytest.approx(RECORDED.together, rel=0.01)
    for case in found["cases"].values():  # the tree of a node that ran, of which it is an estimate
        assert case["planning"]["together"] == pytest.approx(RECORDED.together, rel=0.05)
        assert case["idle"]["together"] < case["training"]["together"]


def test_what_takes_long_is_said_before_it_is_done(monkeypatch, capsys):
    def measured(what, environment):
        assert "measuring what a client takes" in capsys.readouterr().err
        raise MestFedError("enough")

    monkeypatch.setattr("mest_fed.cli.baseline.measure_process", measured)
    with pytest.raises(MestFedError, match="enough"):
        measure_baseline({})


@pytest.mark.slow
@pytest.mark.soak
def test_this_machine_is_measured_as_recorded():
    found = measure_baseline(node_environment())
    assert found.beside.keys() == RECORDED.beside.keys()
    assert found.worker.parents > 0
    assert found.together == pytest.approx(RECORDED.together, rel=0.2)  # of other versions, too
