"""Rows as the dicts that are written, and the limits that are checked when they are read."""

import pkgutil
import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from mest_fed import run_rows
from mest_fed.run_rows.rounds import ClientRow, RoundRow, Spread
from mest_fed.run_rows.row import as_row
from mest_fed.run_rows.summary import Layer
from mest_fed.schema import TaskStatus

NEEDED = {
    "round": 1,
    "density": 0.1,
    "bytes_up": 1,
    "bytes_down": 2,
    "virtual_seconds": 1.0,
    "wall_seconds": 0.5,
    "trained": 1,
    "failed": 0,
    "rejected": 0,
    "energy_joules": 3.0,
}
SPREAD = {"mean": 0.5, "min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


def test_a_row_is_written_in_the_order_of_its_fields_with_what_is_nested():
    row = RoundRow(**NEEDED, client_metrics={"mae": Spread(**SPREAD)})
    written = as_row(row)
    assert [*written][:7] == [
        "round", "accuracy", "loss", "client_accuracy", "metrics", "client_metrics", "train_loss",
    ]  # fmt: skip
    assert written["client_metrics"] == {"mae": SPREAD}
    assert written["stopped"] is None


def test_only_optional_keys_without_a_value_are_left_out():
    layers = [Layer(name="a", weights=4, density=0.5), Layer(name="b", weights=1, density=1.0)]
    assert as_row(layers[0])["reason"] is None
    assert "reason" not in as_row(layers[0], optional=("reason",))
    assert as_row(layers[1], optional=("name",))["name"] == "b"


def test_what_was_written_is_read_as_the_same_row():
    row = RoundRow(**NEEDED, client_metrics={"mae": Spread(**SPREAD)}, stopped="enough")
    assert TypeAdapter(RoundRow).validate_python(as_row(row)) == row


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("density", 1.0, True),
        ("density", 1.01, False),
        ("density", -0.01, False),
        ("bytes_up", 0, True),
        ("bytes_up", -1, False),
        ("bytes_up", 1.5, False),
        ("energy_joules", 1e30, True),
        ("energy_joules", -1e-9, False),
        ("energy_joules", float("nan"), False),
    ],
)
def test_limits_are_checked_where_a_row_is_read(key, value, fits):
    adapter = TypeAdapter(RoundRow)
    if fits:
        assert getattr(adapter.validate_python(NEEDED | {key: value}), key) == value
    else:
        with pytest.raises(ValidationError, match=key):
            adapter.validate_python(NEEDED | {key: value})


def test_the_time_of_a_task_is_that_of_its_three_parts():
    row = ClientRow(
        round=1,
        partition=0,
        device="d",
        status=TaskStatus.OK,
        bytes_down=0,
        bytes_up=0,
        download_seconds=1.0,
        train_seconds=2.0,
        upload_seconds=4.0,
        energy_joules=0.0,
    )
    assert row.seconds == 7.0


def test_the_classes_need_the_standard_library_alone():
    modules = [f"mest_fed.run_rows.{it.name}" for it in pkgutil.iter_modules(run_rows.__path__)]
    assert "mest_fed.run_rows.rounds" in modules
    code = f"import sys, {', '.join(modules)}; "
    code += "print({'torch', 'numpy', 'pydantic', 'flwr'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
