"""Profiles: the built-in ones are complete and unlike, and a wrong file is one clear line."""

import math

import pytest

from mest_fed.devices import load_profile, profile_names
from mest_fed.errors import InputError

GOOD = """
title = "Test board"
memory_bytes = 1_000_000
budget_bytes = 500_000
memory_rate = 2e9
core_speed = 0.5
message_seconds = 3.0
download_rate = 1000
upload_rate = 500.0
latency = 0.5
compute_watts = 4.0
radio_watts = 2.0
idle_watts = 1.0
availability = 1

[flops]
dense = 1e9
unstructured = 0.1e9
block = 0.5e9
pattern = 0.2e9
channel = 0.8e9

[sources]
memory_bytes = "data sheet: yes"
budget_bytes = "modelled: half"
flops = "measured: by hand"
memory_rate = "modelled: x"
core_speed = "modelled: x"
message_seconds = "modelled: x"
download_rate = "modelled: x"
upload_rate = "modelled: x"
latency = "modelled: x"
compute_watts = "modelled: x"
radio_watts = "modelled: x"
idle_watts = "modelled: x"
availability = "modelled: x"
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "board.toml"
        path.write_text(text)
        return str(path)

    return write


def test_own_file_is_read(write):
    profile = load_profile(write(GOOD))
    assert profile.name == "board"
    assert profile.title == "Test board"
    assert (profile.memory_bytes, profile.budget_bytes) == (1_000_000, 500_000)
    assert profile.flops["block"] == 0.5e9
    assert profile.availability == 1.0
    assert profile.sources["flops"] == "measured: by hand"


WITH_BATTERY = GOOD.replace(
    "availability = 1\n", "availability = 1\nbattery_joules = 50_000\ncharge_watts = 10\n"
)
BATTERY_SOURCES = 'battery_joules = "data sheet: yes"\ncharge_watts = "modelled: x"\n'


def test_a_battery_is_optional(write):
    assert load_profile(write(GOOD)).battery_joules is None
    profile = load_profile(write(WITH_BATTERY + BATTERY_SOURCES))
    assert (profile.battery_joules, profile.charge_watts) == (50_000, 10)


def test_what_the_system_takes_is_optional(write):
    assert load_profile(write(GOOD)).system_bytes is None
    text = GOOD.replace("budget_bytes = 5", "system_bytes = 200_000\nbudget_bytes = 5", 1)
    with pytest.raises(InputError, match=r"sources\.system_bytes is missing"):
        load_profile(write(text))
    text += 'system_bytes = "modelled: x"\n'
    assert load_profile(write(text)).system_bytes == 200_000
    with pytest.raises(InputError, match=r"system_bytes = 1000000 .* less than memory_bytes"):
        load_profile(write(text.replace("system_bytes = 200_000", "system_bytes = 1_000_000")))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("charge_watts = 10\n", "", "charge_watts is missing; battery_joules is given"),
        ("battery_joules = 50_000\n", "", "battery_joules is missing; charge_watts is given"),
        ("50_000", "0", "battery_joules = 0 is not allowed; allowed: a positive number"),
        (BATTERY_SOURCES, "", "sources.battery_joules is missing"),
    ],
)
def test_a_battery_is_given_whole(write, old, new, words):
    text = WITH_BATTERY + BATTERY_SOURCES
    assert old in text
    with pytest.raises(InputError, match=words):
        load_profile(write(text.replace(old, new, 1)))


def test_phones_have_batteries_and_boards_have_none():
    have = {name for name in profile_names() if load_profile(name).battery_joules}
    assert have == {"phone-low", "phone-mid", "phone-high"}
    for name in have:  # 8 to 28 Wh, charged within half an hour to four hours
        profile = load_profile(name)
        assert 30_000 < profile.battery_joules < 100_000
        assert 1800 < profile.battery_joules / profile.charge_watts < 4 * 3600


def test_mappings_cannot_be_changed(write):
    profile = load_profile(write(GOOD))
    with pytest.raises(TypeError):
        profile.flops["dense"] = 1.0


def test_built_in_names():
    expected = "rpi-zero-2w rpi-3b-plus rpi-4 rpi-5 jetson-nano phone-low phone-mid phone-high"
    assert set(expected.split()) <= set(profile_names())
    assert list(profile_names()) == sorted(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_built_in_profile_is_plausible(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.budget_bytes < profile.memory_bytes / 4
    assert 1e9 < profile.flops["dense"] < 1e12
    # An active weight never goes faster in a sparse kernel than in the dense one.
    assert max(profile.flops.values()) == profile.flops["dense"]
    assert min(profile.flops.values()) == profile.flops["unstructured"]
    assert profile.idle_watts < profile.radio_watts <= profile.compute_watts
    assert profile.upload_rate <= profile.download_rate
    assert profile.latency < 0.1


def test_the_fleet_is_unlike():
    profiles = [load_profile(name) for name in profile_names()]
    budgets = [profile.budget_bytes for profile in profiles]
    rates = [profile.upload_rate for profile in profiles]
    assert max(budgets) / min(budgets) > 10
    assert max(rates) / min(rates) > 10
    assert load_profile("rpi-zero-2w").budget_bytes < 100_000_000
    assert load_profile("rpi-zero-2w").flops["dense"] < load_profile("rpi-5").flops["dense"] / 5


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("latency = 0.5", "", ["latency", "missing"]),
        (
            "latency = 0.5",
            "latency = 0.5\nspeed = 3",
            ["speed", "not a known key", "system_bytes", "node_bytes"],
        ),
        ("latency = 0.5", "latency = 0", ["latency = 0", "positive number"]),
        ("latency = 0.5", "latency = nan", ["latency = nan", "positive number"]),
        ("latency = 0.5", "latency = inf", ["latency = inf", "positive number"]),
        ("latency = 0.5", "latency = true", ["latency = True", "positive number"]),
        ("latency = 0.5", 'latency = "fast"', ["latency = 'fast'", "positive number"]),
        ("budget_bytes = 500_000", "budget_bytes = 5.5", ["budget_bytes = 5.5", "whole number"]),
        ("budget_bytes = 500_000", "budget_bytes = -5", ["budget_bytes = -5", "whole number"]),
        ("budget_bytes = 500_000", "budget_bytes = 1_000_001", ["at most memory_bytes = 1000000"]),
        ("availability = 1\n", "availability = 1.01\n", ["availability = 1.01", "(0, 1]"]),
        ('title = "Test board"', "title = 3", ["title = 3", "a text"]),
        ('title = "Test board"', 'title = " "', ["title = ' '", "a text"]),
        ("block = 0.5e9", "", ["flops.block", "missing"]),
        ("block = 0.5e9", "block = 0.5e9\nnm = 1e9", ["flops.nm", "not a known key"]),
        ("block = 0.5e9", "block = -1.0", ["flops.block = -1.0", "positive number"]),
        ('latency = "modelled: x"', "", ["sources.latency", "missing"]),
        ('latency = "modelled: x"', 'latency = "guess"', ["sources.latency", "'measured: '"]),
        ('latency = "modelled: x"', "latency = 1", ["sources.latency = 1", "a text"]),
        ("[flops]", "[flops.deep]", ["flops.deep", "not a known key"]),
        ("title =", "title", ["not a TOML file"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_key(write, old, new, words):
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        load_profile(path)
    message = str(error.value)
    assert "\n" not in message
    assert path in message
    for word in words:
        assert word in message


def test_flops_that_is_no_table(write):
    head, tail = GOOD.split("[flops]")
    path = write("flops = 3\n" + head + "[sources]" + tail.split("[sources]")[1])
    with pytest.raises(InputError, match=r"flops = 3 is not allowed; allowed: a table with dense"):
        load_profile(path)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"device profile = 'pi' is not allowed.*rpi-zero-2w"):
        load_profile("pi")


def test_missing_file_names_the_path(tmp_path):
    path = str(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"none\.toml: cannot read it \(No such file") as error:
        load_profile(path)
    assert "\n" not in str(error.value)


def test_binary_file_is_an_input_error(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a TOML file"):
        load_profile(str(path))


def test_figures_are_finite():
    for name in profile_names():
        assert all(math.isfinite(rate) for rate in load_profile(name).flops.values())
