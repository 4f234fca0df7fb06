"""A node's end: its own, by a signal, by the kernel for want of memory."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict

import psutil
import pytest

from mest_fed.cli import supervise
from mest_fed.cli.app import FAILED, REFUSED
from mest_fed.cli.baseline import measure_process
from mest_fed.cli.superlink import Link, as_argument
from mest_fed.errors import MestFedError
from mest_fed.system.limits import limit_memory

MB = 10**6
#: A node with a child of its own, whose id it tells.
NODE = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}])
print(child.pid, flush=True)
{then}
"""
SLEEP = "import time; time.sleep(100)"
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('deaf', flush=True); time.sleep(100)"
)
#: As Flower's SuperExec, ends with its parent.
FAITHFUL = (
    "import os, time; parent = os.getppid(); print('there', flush=True)\n"
    "while os.getppid() == parent: time.sleep(0.05)"
)
GREEDY = "import time; time.sleep(0.3); block = b'x' * 200_000_000; time.sleep(100)"

#: Becomes a supervisor as soon as it is told which group it is in.
LAUNCH = """
import json, os, sys
job = json.loads(sys.argv[1]) | {"cgroup_limit": json.loads(input())}
os.execv(sys.executable, [sys.executable, "-m", "mest_fed.cli.supervise", json.dumps(job)])
"""


@pytest.fixture
def start():
    """Return a function that starts a supervisor of a node; it returns its process."""
    started = []

    def supervisor(child=SLEEP, then="time.sleep(100)", limit=None, link=""):
        node = [sys.executable, "-c", NODE.format(child=child, then=then)]
        job = {"command": node, "link": link, "limit": "64MB"}
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        held = None if limit is None else limit_memory(limit, pid=process.pid)
        if held is not None and held.cgroup_limit is None:
            held.release()
            pytest.skip(f"no memory control group can be made here; {held.kind} would hold it")
        cgroup_limit = None if held is None else asdict(held.cgroup_limit)
        process.stdin.write(json.dumps(cgroup_limit, default=str) + "\n")
        process.stdin.flush()
        return process, held

    yield supervisor
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def child_of(process):
    return psutil.Process(int(process.stdout.readline()))


def gone(child):
    _, alive = psutil.wait_procs([child], timeout=5)
    return not alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all(start, number):
    process, _ = start()
    child = child_of(process)
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    assert gone(child)
    assert process.stderr.read() == ""


def test_what_does_not_hear(monkeypatch):
    monkeypatch.setattr(supervise, "PATIENCE", 0.3)
    code = NODE.format(child=DEAF, then=DEAF)
    node = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with node:
        child = child_of(node)
        assert [node.stdout.readline() for _ in range(2)] == ["deaf\n"] * 2
        supervise.end_node(node, None)
    assert node.returncode == -signal.SIGKILL
    assert gone(child)


def test_a_supervisor_that_is_killed_takes_all_along(start):
    process, _ = start(child=FAITHFUL)
    child = child_of(process)
    node = child.parent()
    assert process.stdout.readline() == "there\n"
    process.kill()
    assert gone(node)
    assert gone(child)


@pytest.mark.parametrize(
    ("then", "line"),
    [
        ("sys.exit(0)", "error: the node ended by itself (status 0), as Flower's does when the "),
        ("sys.exit(3)", "error: the node ended with status 3; what it said stands above\n"),
        ("import os; os.kill(os.getpid(), 9)", "error: the node was killed (SIGKILL), as "),
    ],
)
def test_a_node_that_ends_by_itself(start, then, line):
    process, _ = start(then=then)
    child = child_of(process)
    assert process.wait(timeout=20) == FAILED
    assert gone(child)
    said = process.stderr.read()
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_the_superlink_says_why_a_node_ended(start):
    process, _ = start(then="sys.exit(0)", link=as_argument(Link("127.0.0.1:1")))
    assert process.wait(timeout=60) == REFUSED
    assert process.stderr.read() == "error: no SuperLink at 127.0.0.1:1: Connection refused\n"


def test_killed_for_memory(start):
    process, held = start(child=GREEDY, limit=64 * MB)
    child = child_of(process)
    assert process.wait(timeout=20) == 1
    assert gone(child)
    said = process.stderr.read()
    assert said.startswith("error: the kernel killed a process of this node for memory (--memory-")
    assert said.count("\n") == 1
    assert "'64MB'" in said
    assert not held.cgroup_limit.group.folder.exists()


def test_a_kill_that_costs_a_round_alone(start):
    # The node's child stands for Flower's SuperExec: it lives on when its own child is killed.
    child = (
        "import subprocess, sys, time\n"
        f"done = subprocess.run([sys.executable, '-c', {GREEDY!r}])\n"
        "print('round over', done.returncode, flush=True)\n"
        "time.sleep(100)"
    )
    process, _ = start(child=child, limit=64 * MB)
    child = child_of(process)
    assert process.stdout.readline() == "round over -9\n"
    line = process.stderr.readline()
    assert line.startswith("the kernel killed a process of this node for memory (--memory-limit = ")
    assert line.endswith("its round has failed, the node stays\n")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert gone(child)


def test_the_group_is_left_at_the_end(start):
    process, held = start(limit=200 * MB)
    child = child_of(process)
    assert set(held.cgroup_limit.group.processes()) >= {process.pid, child.pid}
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert not held.cgroup_limit.group.folder.exists()


def test_memory_of_a_process_is_measured():
    memory = measure_process(["mest-fed"], os.environ)
    assert 5 * MB < memory.own < memory.resident < 200 * MB
    assert 0 < memory.reserved < 200 * MB


def test_what_cannot_be_imported():
    with pytest.raises(MestFedError, match=r"pytest cannot be imported: .*no_such_module"):
        measure_process(["pytest", "no_such_module"], os.environ)
