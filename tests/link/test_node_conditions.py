"""When a device may train, and what board it is: read from the files of a system."""

import pytest

from mest_fed.errors import InputError
from mest_fed.link.node.board import board_of
from mest_fed.link.node.conditions import Conditions
from mest_fed.schema import FailureKind
from mest_fed.system.readings import Readings, readings


@pytest.fixture
def put(tmp_path):
    """Return a function that writes files below a root; it returns the root."""

    def write(**files):
        for name, text in files.items():
            place = tmp_path / name.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        return tmp_path

    return write


BATTERY = "sys__class__power_supply__BAT0__"
MAINS = "sys__class__power_supply__AC__"
CELL = {f"{BATTERY}type": "Battery", f"{BATTERY}capacity": "37"}


def test_a_system_that_tells_nothing_holds_nobody_back(tmp_path):
    assert readings(tmp_path) == Readings()
    everything = Conditions.read("plugged, idle, cool:40, battery:90")
    assert everything.obstacle(Readings()) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({f"{MAINS}type": "Mains\n", f"{MAINS}online": "1\n"}, Readings(plugged=True)),
        ({f"{MAINS}type": "Mains\n", f"{MAINS}online": "0\n"}, Readings(plugged=False)),
        (
            {**CELL, f"{BATTERY}status": "Discharging"},
            Readings(plugged=False, battery=37.0),
        ),
        (
            {**CELL, f"{BATTERY}status": "Charging"},
            Readings(plugged=True, battery=37.0),
        ),
        ({f"{BATTERY}type": "Battery", f"{BATTERY}status": "?"}, Readings()),
        ({f"{MAINS}type": "Mains\n", f"{MAINS}online": "?\n"}, Readings()),
        (
            {
                "sys__class__thermal__thermal_zone0__temp": "41000",
                "sys__class__thermal__thermal_zone1__temp": "71500\n",
                "sys__class__thermal__thermal_zone2__temp": "",
            },
            Readings(celsius=71.5),
        ),
        (
            {
                "proc__loadavg": "1.50 0 0 1/9 9",
                "sys__devices__system__cpu__cpu0__x": "",
                "sys__devices__system__cpu__cpu1__x": "",
                "sys__devices__system__cpu__cpufreq__x": "",
            },
            Readings(load=0.75),
        ),
        ({"proc__loadavg": "rubbish", "sys__devices__system__cpu__cpu0__x": ""}, Readings()),
        ({"proc__loadavg": "1.50 0 0 1/9 9"}, Readings()),
    ],
)
def test_what_files_say(put, files, expected):
    assert readings(put(**files)) == expected


@pytest.mark.parametrize(
    ("text", "now", "failure"),
    [
        ("battery:30", Readings(plugged=False, battery=29.0), FailureKind.BATTERY_LOW),
        ("battery:30", Readings(plugged=False, battery=30.0), None),
        ("battery:30", Readings(plugged=True, battery=3.0), None),
        ("plugged", Readings(plugged=False), FailureKind.BUSY),
        ("plugged", Readings(plugged=True), None),
        ("cool:70", Readings(celsius=70.5), FailureKind.BUSY),
        ("cool:70", Readings(celsius=70.0), None),
        ("idle", Readings(load=0.6), FailureKind.BUSY),
        ("idle", Readings(load=0.5), None),
        ("", Readings(plugged=False, battery=1.0, celsius=99.0, load=9.0), None),
    ],
)
def test_what_holds_a_device_back(text, now, failure):
    obstacle = Conditions.read(text).obstacle(now)
    assert (obstacle and obstacle[0]) == failure


@pytest.mark.parametrize(
    "text", ["sunny", "cool", "cool:", "cool:hot", "cool:nan", "battery:-1", "idle:3", "cool:1e9"]
)
def test_a_wrong_condition_is_one_line(text):
    with pytest.raises(InputError, match=r"--train-when.*allowed: "):
        Conditions.read(text)


@pytest.mark.parametrize(
    ("model", "board"),
    [
        ("Raspberry Pi 4 Model B Rev 1.5\0", "rpi-4"),
        ("Raspberry Pi Zero 2 W Rev 1.0\0", "rpi-zero-2w"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "rpi-3b-plus"),
        ("NVIDIA Jetson Nano Developer Kit", "jetson-nano"),
        ("Banana Pi\0", None),
        ("R\u00e4spberry", None),
    ],
)
def test_what_board_it_is(put, model, board):
    assert board_of(put(**{"proc__device-tree__model": model})) == board


def test_a_system_without_a_device_tree_names_no_board(tmp_path):
    assert board_of(tmp_path) is None


def test_a_saving_plan_that_would_never_be_used_is_refused():
    with pytest.raises(InputError, match=r"saving:30.*more than battery:40"):
        Conditions.read("saving:30, battery:40")
    for wrong in ("saving", "saving:", "saving:101", "saving:x"):
        with pytest.raises(InputError, match="--train-when"):
            Conditions.read(wrong)


@pytest.mark.parametrize(
    ("now", "saves"),
    [
        (Readings(), False),
        (Readings(plugged=False), False),
        (Readings(plugged=False, battery=60.0), False),
        (Readings(plugged=False, battery=59.0), True),
        (Readings(plugged=True, battery=10.0), False),
        (Readings(battery=10.0), False),
    ],
)
def test_a_short_battery_asks_for_a_plan_of_less_work(now, saves):
    conditions = Conditions.read("battery:40, saving:60")
    assert conditions.saves(now) is saves
    assert not Conditions.read("battery:40").saves(now)
