"""What /proc says of this process and of others, against what is known of them otherwise."""

import gc
import mmap
import os
import subprocess
import sys
import time

import pytest

from mest_fed.system import proc

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def child():
    """Start a process that waits, with a variable of its own."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"],
        stdin=subprocess.PIPE,
        env=os.environ | {"MEST_FED_TEST": "a=b c"},
    )
    yield process
    process.kill()
    process.communicate()


def ended(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_the_sizes_of_this_process_grow_with_what_it_holds():
    gc.collect()  # what is released meanwhile does not count against what is held
    before = proc.resident_bytes()
    held = b"x" * (256 << 20)
    assert proc.resident_bytes() - before > 200 << 20
    sizes = proc.read_sizes()
    assert sizes["VmSize"] >= sizes["VmRSS"] > len(held)
    assert proc.read_sizes(os.getpid()).keys() == sizes.keys()


def test_a_folder_of_files_stands_for_proc(tmp_path):
    (tmp_path / "7").mkdir()
    text = "Name:\ta\nVmRSS:\t     12 kB\nThreads:\t3\nVmSwap:\t0 kB\n"
    (tmp_path / "7" / "status").write_text(text)
    assert proc.read_sizes(7, tmp_path) == {"VmRSS": 12 * 1024, "VmSwap": 0}
    assert proc.read_sizes(8, tmp_path) == {}
    rollup = "5-7 ---p 0 00:00 0 [rollup]\nRss:    12 kB\nPss:     5 kB\n"
    (tmp_path / "7" / "smaps_rollup").write_text(rollup)
    assert proc.read_shares(7, tmp_path) == {"Rss": 12 * 1024, "Pss": 5 * 1024}
    assert proc.read_shares(8, tmp_path) == {}


def test_where_there_is_no_proc_the_peak_stands_for_what_is_resident(tmp_path):
    assert proc.resident_bytes(tmp_path) >= proc.resident_bytes() // 2


def test_a_child_its_parent_its_start_and_its_environment(child):
    found = proc.read_stat(child.pid)
    assert found.parent == os.getpid()
    assert found == proc.read_stat(child.pid)
    assert int(found.start) >= int(proc.read_stat(os.getpid()).start)
    assert child.pid in proc.process_ids()
    # Between fork and exec it has its parent's environment.
    assert ended(lambda: proc.read_variable(child.pid, "MEST_FED_TEST") == "a=b c")
    assert proc.read_variable(child.pid, "MEST_FED_TES") is None


def test_what_has_ended_is_none_before_and_after_its_parent_has_looked(child):
    child.kill()
    assert ended(lambda: proc.read_stat(child.pid) is None)  # it is a zombie
    child.wait()
    assert proc.read_stat(child.pid) is None
    assert proc.read_sizes(child.pid) == {}
    assert proc.read_variable(child.pid, "PATH") is None


@pytest.mark.skipif(not proc.can_reset_peak(), reason="this system resets no peak")
def test_the_peak_can_be_set_back():
    held = b"x" * (64 << 20)
    del held
    proc.reset_peak()
    assert proc.read_sizes()["VmHWM"] - proc.resident_bytes() < 32 << 20


@pytest.mark.skipif(not proc.can_reset_peak(), reason="this system resets no peak")
def test_the_peak_is_read_and_set_back_at_once():
    proc.reset_peak()
    with mmap.mmap(-1, 64 << 20) as held:  # the allocator may keep what is freed
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
    found = proc.read_sizes_and_reset_peak()
    assert found.keys() == proc.read_sizes().keys()
    assert found["VmHWM"] - found["VmRSS"] > 48 << 20
    assert proc.read_sizes()["VmHWM"] - found["VmRSS"] < 16 << 20
