"""The report's table of real devices, one by one."""

from dataclasses import asdict, replace

import pytest
from example_run import example_files, write_files

from mest_fed.run_rows.summary import RealDevice
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.node_table import NODE_COLUMNS, node_rows
from mest_fed.simulation.report.run_tables import run_tables
from mest_fed.simulation.report.tables import NOTHING

KITCHEN = RealDevice(
    partition=1,
    name="kitchen <pi>",
    device="phone-low",
    examples=1200,
    budget_bytes=4_000_000,
    density=0.1,
    micro_batch=8,
    predicted_peak_bytes=3_000_000,
    measured_peak_bytes=3_100_000,
)
SHED = replace(KITCHEN, partition=0, name="shed", device="x86-box", measured_peak_bytes=None)


def task(number, partition, status, seconds):
    return {
        "round": number,
        "partition": partition,
        "device": "rpi-4",
        "status": status,
        "reason": None if status == "ok" else "the battery is low",
        "bytes_down": 1000,
        "bytes_up": 500 if status == "ok" else 0,
        "download_seconds": 1.0,
        "train_seconds": seconds,
        "upload_seconds": 0.0,
        "energy_joules": 1.0,
    }


@pytest.fixture
def folder(tmp_path):
    contents = example_files(rounds=2)
    contents["summary"] |= {"deployed": True, "nodes": [asdict(KITCHEN), asdict(SHED)]}
    contents["clients"] = [
        task(1, 1, "ok", 9.0),
        task(2, 1, "ok", 19.0),
        task(2, 1, "ok", 11.0),
        task(1, 0, "failed", 3.0),
    ]
    return write_files(tmp_path, contents)


def test_a_row_says_what_a_node_trained_with_and_did(folder):
    shed, kitchen = node_rows(load_run(folder))
    assert len(kitchen) == 1 + len(NODE_COLUMNS)
    title = "Phone, entry level"
    assert kitchen[:3] == ("kitchen <pi>", title, "1\N{NARROW NO-BREAK SPACE}200")
    # Half of three tasks took 12 seconds or less; each was sent 1,000 bytes and gave back 500.
    assert kitchen[3:] == ("3 of 3", "12.0 s", "10%", "4 MB", "3.1 MB, 77.5%", "4.5 kB")
    assert shed == (
        "shed",
        "x86-box",
        kitchen[2],
        "0 of 1",
        NOTHING,
        "10%",
        "4 MB",
        NOTHING,
        "1 kB",
    )


def test_a_simulated_run_has_no_such_table(tmp_path):
    folder = write_files(tmp_path, example_files(rounds=2))
    assert node_rows(load_run(folder)) == []
    assert "nodes" not in run_tables(folder)


def test_the_table_is_among_the_files_of_a_report(folder):
    assert run_tables(folder)["nodes"][0] == asdict(KITCHEN)
