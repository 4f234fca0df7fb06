"""Time and energy, by hand."""

from dataclasses import replace

import pytest

from mest_fed.devices import (
    Work,
    download_seconds,
    energy_joules,
    load_profile,
    train_seconds,
    upload_seconds,
)
from mest_fed.errors import InputError


@pytest.fixture
def profile():
    flops = {"dense": 100.0, "unstructured": 10.0, "block": 50.0, "pattern": 20.0, "channel": 80.0}
    return replace(
        load_profile("rpi-4"),
        flops=flops,
        download_rate=10.0,
        upload_rate=4.0,
        latency=0.25,
        compute_watts=5.0,
        radio_watts=3.0,
        idle_watts=1.0,
    )


@pytest.mark.parametrize(
    ("scheme", "seconds"),
    [("unstructured", 32.0), ("block", 8.0), ("block:8", 8.0), ("pattern", 17.0)],
)
def test_dense_and_sparse_parts_add_up(profile, scheme, seconds):
    assert train_seconds(profile, Work(200.0, 300.0), scheme) == pytest.approx(seconds)


def test_unknown_scheme(profile):
    with pytest.raises(InputError, match=r"scheme = 'nm' is not allowed; allowed: unstructured"):
        train_seconds(profile, Work(1.0, 1.0), "nm")


def test_transfer_is_latency_and_bytes(profile):
    assert download_seconds(profile, 100) == pytest.approx(10.25)
    assert upload_seconds(profile, 100) == pytest.approx(25.25)
    assert upload_seconds(profile, 0) == 0.25


def test_energy_is_power_times_time(profile):
    assert energy_joules(profile, 10.0, 2.0) == pytest.approx(56.0)
    assert energy_joules(profile, 10.0, 2.0, idle_seconds=4.0) == pytest.approx(60.0)


def test_work_of_several_images():
    assert Work(2.0, 3.0) * 4 == Work(8.0, 12.0)
