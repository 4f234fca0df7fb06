"""Cores that a process may keep busy: of the machine, of its affinity, of its control groups."""

import os
import subprocess
import sys

import pytest
from cgroup_trees import fill

from mest_fed.system.cgroups import available_cores, own_cgroups


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),  # half a core keeps one worker going
        ("1600000 100000\n", 8),
        ("garbage\n", 8),
    ],
)
def test_a_quota_of_version_2(machine, quota, cores):
    _, own = machine.mount(2, "unified", "/a/b")
    fill(own, cpu__max=quota)
    assert available_cores(machine.proc) == cores


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("300000", 3), ("150000", 1)])
def test_a_quota_of_version_1(machine, quota, cores):
    machine.mount(1, "memory", "/m")
    _, own = machine.mount(1, "cpu,cpuacct", "/a", controller="cpu,cpuacct")
    fill(own, cpu__cfs_quota_us=f"{quota}\n", cpu__cfs_period_us="100000\n")
    assert available_cores(machine.proc) == cores
    assert [group.folder for group in own_cgroups(machine.proc, controller="cpu")] == [own]


@pytest.mark.usefixtures("eight_cores")
def test_the_tightest_quota_on_the_way_up_counts(machine):
    top, own = machine.mount(2, "unified", "/a/b")
    fill(own, cpu__max="600000 100000")
    fill(top / "a", cpu__max="400000 100000")
    fill(top, cpu__max="max 100000")
    assert available_cores(machine.proc) == 4


@pytest.mark.usefixtures("eight_cores")
def test_without_any_group_all_cores_count(machine):
    assert available_cores(machine.proc) == 8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be bound here")
def test_a_process_that_is_bound_to_a_core_has_one():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from mest_fed.system.cgroups import available_cores; print(available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
