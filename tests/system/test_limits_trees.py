"""Limits and what is charged, read from and written to trees of control groups that are files."""

import resource

import pytest
from cgroup_trees import UNLIMITED_1, fill

from mest_fed.errors import InputError, MestFedError
from mest_fed.system.limits import limit_memory, limit_of_process, usage

MB = 10**6
STAT_1 = "cache 900\nrss 1\ntotal_cache 90000000\ntotal_rss 30000000\ntotal_mapped_file 5000000\n"
STAT_2 = (
    "anon 30000000\nfile 90000000\nfile_mapped 5000000\nshmem 0\nkernel 4000000\n"
    "sock 0\nslab_reclaimable 3000000\n"
)


@pytest.fixture
def no_rlimit(monkeypatch):
    """Fail where RLIMIT_AS would be set, and note what it would be."""
    asked = []

    def prlimit(pid, which, limits=None):
        assert which == resource.RLIMIT_AS
        asked.append((pid, limits))
        return (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    monkeypatch.setattr("mest_fed.system.limits.resource.prlimit", prlimit)
    return asked


def test_version_1(machine, no_rlimit):
    _, own = machine.mount(1, "memory", "/a/b")
    with limit_memory(300 * MB, pid=42, proc=machine.proc) as limit:
        (group,) = (path for path in own.iterdir() if path.is_dir())
        assert (limit.kind, limit.bytes) == ("cgroup v1", 300 * MB)
        assert "swap" not in limit.caveat
        assert (group / "memory.limit_in_bytes").read_text() == "300000000"
        assert (group / "memory.memsw.limit_in_bytes").read_text() == "300000000"
        assert (group / "cgroup.procs").read_text() == "42"
    assert not group.exists()
    assert (own / "cgroup.procs").read_text() == "42"
    assert no_rlimit == []


def test_without_an_account_of_swap(machine):
    _, own = machine.mount(1, "memory", "/a")
    fill(own, no_swap="")
    with limit_memory(MB, pid=42, proc=machine.proc) as limit:
        assert "swap is not counted" in limit.caveat


def test_version_2(machine, no_rlimit):
    _, own = machine.mount(2, "unified", "/user/app.scope")
    machine.mount(1, "memory", "/a/b")
    fill(own, cgroup__controllers="cpu memory pids\n", cgroup__subtree_control="\n")
    with limit_memory(300 * MB, pid=42, proc=machine.proc) as limit:
        (group,) = (path for path in own.iterdir() if path.is_dir())
        assert limit.kind == "cgroup v2"
        assert (own / "cgroup.subtree_control").read_text() == "+memory"
        assert (group / "memory.max").read_text() == "300000000"
        assert (group / "memory.swap.max").read_text() == "0"
        assert (group / "cgroup.procs").read_text() == "42"
    assert (own / "cgroup.subtree_control").read_text() == "-memory"
    assert (own / "cgroup.procs").read_text() == "42"
    assert not group.exists()
    assert no_rlimit == []


def test_version_2_without_memory_leaves_it_to_version_1(machine):
    _, own = machine.mount(2, "unified", "/")
    _, memory = machine.mount(1, "memory", "/a/b")
    fill(own, cgroup__controllers="hugetlb\n", cgroup__subtree_control="")
    with limit_memory(MB, pid=42, proc=machine.proc) as limit:
        assert limit.kind == "cgroup v1"
        assert limit.cgroup_limit.parent_group.folder == memory


def test_where_the_group_is_not_ours_alone(machine, no_rlimit):
    _, own = machine.mount(2, "unified", "/session.scope")
    fill(own, cgroup__controllers="memory")
    (own / "cgroup.subtree_control").mkdir()  # cannot be written, as with processes beside ours
    with limit_memory(300 * MB, pid=42, proc=machine.proc) as limit:
        assert limit.kind == "RLIMIT_AS"
    assert [path.name for path in own.iterdir() if path.is_dir()] == ["cgroup.subtree_control"]
    assert (own / "cgroup.procs").read_text() == "42"
    # Set, and set back.
    reserved = (900_000 - 100_000) * 1024
    infinite = resource.RLIM_INFINITY
    assert no_rlimit[1:] == [
        (42, (reserved + 300 * MB, infinite)),
        (42, (infinite, infinite)),
    ]


def test_without_any_group(machine, no_rlimit):
    with limit_memory(300 * MB, pid=42, reserved=lambda: 7, proc=machine.proc) as limit:
        assert limit.kind == "RLIMIT_AS"
        assert "address space" in limit.caveat
        assert no_rlimit[-1][1][0] == 300 * MB + 7
    assert limit_of_process(machine.proc) is None
    assert usage(machine.proc) == 100_000 * 1024


def test_on_other_systems(machine, no_rlimit, monkeypatch):
    monkeypatch.setattr("mest_fed.system.limits.sys.platform", "darwin")
    with limit_memory(MB, proc=machine.folder / "none") as limit:
        assert limit.kind == "nothing"
        assert "only the plan" in limit.caveat
    assert no_rlimit == []
    assert limit_of_process(machine.folder / "none") is None
    assert usage(machine.folder / "none") > 10_000


def test_a_process_that_is_larger(machine, no_rlimit):
    with pytest.raises(InputError, match=r"memory limit = 5000000 .* more than 102400000 bytes"):
        limit_memory(5 * MB, pid=42, proc=machine.proc)


@pytest.mark.parametrize("limit", [0, -1])
def test_no_limit_at_all(limit):
    with pytest.raises(InputError, match=f"memory limit = {limit}"):
        limit_memory(limit)


def test_a_group_that_is_not_empty(machine, monkeypatch):
    machine.mount(1, "memory", "/a")
    monkeypatch.setattr("mest_fed.system.cgroups.PATIENCE", 0.05)

    def busy(folder):
        raise OSError(16, "Device or resource busy")

    limit = limit_memory(MB, pid=42, proc=machine.proc)
    monkeypatch.setattr("mest_fed.system.cgroups.os.rmdir", busy)
    with pytest.raises(MestFedError, match="processes in it: 42"):
        limit.release()


def test_the_tightest_of_version_1(machine):
    top, own = machine.mount(1, "memory", "/a/b")
    fill(own, memory__limit_in_bytes=UNLIMITED_1)
    fill(top, memory__limit_in_bytes=UNLIMITED_1)
    assert limit_of_process(machine.proc) is None
    files = {"memory__stat": STAT_1, "memory__usage_in_bytes": 200 * MB}
    fill(own.parent, memory__limit_in_bytes=400 * MB, **files)
    assert limit_of_process(machine.proc) == 400 * MB
    # Anonymous memory and mapped files, not the rest of the cache; the kernel's own share too.
    assert usage(machine.proc) == 35 * MB
    fill(own.parent, memory__kmem__usage_in_bytes=2 * MB)
    assert usage(machine.proc) == 37 * MB
    fill(own.parent, memory__usage_in_bytes=36 * MB)
    assert usage(machine.proc) == 36 * MB
    fill(own, memory__limit_in_bytes=300 * MB, memory__stat="total_rss 7\n")
    assert (limit_of_process(machine.proc), usage(machine.proc)) == (300 * MB, 7)


def test_the_tightest_of_version_2(machine):
    _, own = machine.mount(2, "unified", "/a/b")
    fill(own, memory__max="max\n")
    assert limit_of_process(machine.proc) is None
    fill(own.parent, memory__max=400 * MB, memory__stat=STAT_2, memory__current=200 * MB)
    assert (limit_of_process(machine.proc), usage(machine.proc)) == (400 * MB, 36 * MB)


def test_a_limit_of_the_address_space(machine):
    _, own = machine.mount(2, "unified", "/a")
    fill(own, memory__max=500 * MB, memory__stat="anon 9\n", memory__current=9)
    reserved = (900_000 - 100_000) * 1024
    machine.status(reserved + 250 * MB)
    assert (limit_of_process(machine.proc), usage(machine.proc)) == (250 * MB, 102_400_000)
    machine.status(reserved + 600 * MB)
    assert (limit_of_process(machine.proc), usage(machine.proc)) == (500 * MB, 9)


def test_a_container_that_sees_a_part_of_the_tree(machine):
    _, own = machine.mount(1, "memory", "/docker/abc/job", root="/docker/abc")
    assert own == machine.folder / "memory" / "job"
    fill(own, memory__limit_in_bytes=3 * MB)
    assert limit_of_process(machine.proc) == 3 * MB


def test_a_group_outside_of_what_is_mounted(machine, no_rlimit):
    machine.mount(1, "memory", "/docker/abc", root="/docker/abc")
    (machine.proc / "42" / "cgroup").write_text("4:memory:/other\n")
    with limit_memory(300 * MB, pid=42, proc=machine.proc) as limit:
        assert limit.kind == "RLIMIT_AS"


def test_killed_for_memory(machine):
    machine.mount(1, "memory", "/a")
    with limit_memory(MB, pid=42, proc=machine.proc) as limit:
        group = limit.cgroup_limit.group
        assert group.kills() == 0
        fill(group.folder, memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
        assert group.kills() == 2
