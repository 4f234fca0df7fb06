"""What a run writes of itself before its first round."""

import os
from datetime import UTC, datetime

import numpy as np
import pytest

from mest_fed.config import RunConfig
from mest_fed.simulation.label_counts import count, evenly, label_counts
from mest_fed.simulation.provenance import (
    changes_from,
    command_line,
    provenance_of,
    this_machine,
)
from mest_fed.simulation.settings import resolve
from mest_fed.task import Task


def test_changes_are_counted_from_the_preset():
    name, config = resolve("quickstart", None, ["run.rounds=3", "sparsity.density=0.2"])
    found = {change.key: (change.before, change.after) for change in changes_from(name, config)}
    assert found == {"run.rounds": ("10", "3"), "sparsity.density": ("0.1", "0.2")}


def test_the_defaults_differ_from_themselves_in_nothing():
    assert changes_from("", RunConfig()) == ()


def test_a_preset_says_that_it_is_one():
    name, config = resolve("quickstart", None, [])
    origin = provenance_of(name, config)
    assert (origin.base, origin.changes) == ("quickstart", ())
    started = datetime.fromisoformat(origin.started)
    assert started.tzinfo is not None
    assert started <= datetime.now(UTC)
    assert provenance_of("my-file", config).base == ""


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/usr/bin/mest-fed", "simulate", "--out", "a b"], "mest-fed simulate --out 'a b'"),
        (["/lib/mest_fed/__main__.py", "presets"], "python -m mest_fed presets"),
        ([], ""),
    ],
)
def test_a_command_can_be_typed_again(arguments, command):
    assert command_line(arguments) == command


def test_the_machine_is_named_where_it_says_so(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    machine = this_machine(cpuinfo)
    assert machine.cpu == "Some CPU @ 2 GHz"
    assert 1 <= machine.cores <= machine.machine_cores == os.cpu_count()
    assert machine.memory_bytes > 10**8
    assert this_machine(tmp_path / "none").cpu != "Some CPU @ 2 GHz"


def test_classes_are_counted_and_devices_spread():
    classes = np.array([0, 2, 2, 1])
    assert count(classes, np.array([0, 1, 2]), 4) == (1, 0, 2, 0)
    assert evenly(3, 10) == (0, 1, 2)
    assert evenly(10, 5) == (0, 2, 4, 6, 8)


def test_labels_of_a_fleet_are_those_of_its_partitions():
    _, config = resolve("quickstart", None, [])
    task = Task(config)
    labels = label_counts(task)
    assert labels.classes == tuple("0123456789")
    assert labels.devices == len(labels.counts) == 20
    assert [sum(row) for row in labels.counts] == [len(part) for part in task.partitions]
