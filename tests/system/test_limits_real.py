"""The limit as this machine's kernel holds it, on children that allocate."""

import signal
import subprocess
import sys

import pytest

from mest_fed.system.limits import limit_memory, limit_of_process, usage

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone")

MB = 10**6
LIMIT = 300 * MB
ALLOCATE = "input(); block = b'x' * int({size}); print('lives', flush=True); input()"
#: The child's own child allocates, and it tells how that ended.
BY_A_CHILD = """
import subprocess, sys
input()
print(subprocess.run([sys.executable, "-c", "b'x' * {size}"]).returncode, flush=True)
input()
"""


@pytest.fixture
def start():
    """Return a function that starts a child which waits for a line before it allocates."""
    started = []

    def child(code, size):
        process = subprocess.Popen(
            [sys.executable, "-c", code.format(size=size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield child
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def held(process):
    limit = limit_memory(LIMIT, pid=process.pid)
    if limit.cgroup_limit is None:
        limit.release()
        pytest.skip(f"no memory control group can be made here; {limit.kind} would hold the limit")
    return limit


def test_too_much_is_killed(start):
    process = start(ALLOCATE, 600 * MB)
    with held(process) as limit:
        go(process)
        assert process.wait(timeout=30) == -signal.SIGKILL
        assert limit.cgroup_limit.group.kills() == 1
    assert not limit.cgroup_limit.group.folder.exists()


def test_too_much_in_a_child_of_a_child_is_killed(start):
    process = start(BY_A_CHILD, 600 * MB)
    with held(process) as limit:
        go(process)
        assert process.stdout.readline() == f"{-signal.SIGKILL}\n"
        assert process.poll() is None
        assert limit.cgroup_limit.group.kills() == 1
    assert not limit.cgroup_limit.group.folder.exists()


def test_what_fits_keeps_running(start):
    process = start(ALLOCATE, 100 * MB)
    with held(process) as limit:
        group = limit.cgroup_limit.group
        before = group.usage()
        go(process)
        assert process.stdout.readline() == "lives\n"
        assert group.limit() == LIMIT - LIMIT % 4096
        assert 100 * MB <= group.usage() - before < 110 * MB
        assert group.processes() == [process.pid]
        assert group.kills() == 0
    # It lives on where it came from.
    assert process.poll() is None
    assert not group.folder.exists()
    assert process.pid in limit.cgroup_limit.parent_group.processes()


@pytest.mark.parametrize(("size", "word"), [(600 * MB, "MemoryError"), (100 * MB, "lives")])
def test_the_address_space(start, monkeypatch, size, word):
    monkeypatch.setattr("mest_fed.system.limits.own_cgroups", lambda *_: [])
    process = start(ALLOCATE, size)
    with limit_memory(LIMIT, pid=process.pid) as limit:
        assert limit.kind == "RLIMIT_AS"
        go(process)
        if word == "lives":
            assert process.stdout.readline() == "lives\n"
        else:
            assert process.wait(timeout=30) == 1
            assert process.stderr.read().splitlines()[-1] == "MemoryError"


def test_a_process_learns_its_own_limit():
    code = (
        "from mest_fed.system.limits import limit_memory, limit_of_process, usage\n"
        f"with limit_memory(900 * {MB}) as limit:\n"
        "    block = b'x' * 50_000_000\n"
        "    print(limit.kind, limit_of_process(), usage())\n"
        "print(limit_of_process())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    inside, outside = done.stdout.splitlines()
    kind, limit, charged = inside.rsplit(maxsplit=2)
    if kind == "RLIMIT_AS":
        assert abs(int(limit) - 900 * MB) < 20 * MB
        assert int(charged) > 100 * MB
    else:
        assert int(limit) == 900 * MB - 900 * MB % 4096
        assert 50 * MB <= int(charged) < 100 * MB, "what was there before is not charged"
    assert outside == str(limit_of_process())


def test_usage_is_never_nothing():
    assert usage() > 10 * MB
