"""NVFlare's edge scenario: what the devices are, and that its delays pass in virtual time."""

import json

import delays
import pytest

from mest_fed.devices.profile import load_profile


@pytest.mark.parametrize("delay", delays.DELAYS)
def test_a_device_answers_after_its_delay_and_nothing_else_counts(delay, tmp_path):
    profile = load_profile(str(delays.profile_of(delay, tmp_path)))
    assert profile.message_seconds == delay
    assert 2 * profile.latency == delays.TRANSFER
    assert min(*profile.flops.values(), profile.memory_rate, profile.upload_rate) >= 1e17


@pytest.mark.soak
def test_synchronous_rounds_wait_for_the_slowest_and_asynchronous_ones_do_not(tmp_path):
    file = tmp_path / "rows.json"
    delays.main(["--quick", "--json", str(file)])
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert len(rows) == 4
    for name, row in rows.items():
        assert row["updates"] == 32
        assert row["virtual_minutes"] == pytest.approx(row["expected_minutes"], rel=0.2), name
        assert row["ours"] < row["virtual_minutes"]
    sync, quick = (rows[f"{mode}, dense"]["virtual_minutes"] for mode in delays.REPORTED)
    assert 1.5 < sync / quick < 2.5
