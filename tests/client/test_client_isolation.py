"""A device's messages are answered in a child process, whose end costs one round."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from client_parts import context_of, small_config
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from mest_fed.client.isolation import ALONE, isolated
from mest_fed.errors import InputError, MestFedError, OutOfMemoryError
from mest_fed.system.limits import limit_memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone")

CONFIG = small_config()
MB = 10**6


@pytest.fixture
def report(monkeypatch):
    """Return a function that has a handler report a message as on a device: (reply, context)."""
    monkeypatch.setenv(ALONE, "1")

    def run(handler):
        context = context_of(CONFIG)
        message = Message(RecordDict({"config": ConfigRecord({"number": 7})}), 55, "train")
        return isolated(handler)(message, context), context

    return run


def test_the_reply_and_the_state_come_back(report):
    def handler(message, context):
        number = message.content["config"]["number"]
        context.state["kept"] = ConfigRecord({"pid": os.getpid()})
        return Message(RecordDict({"arrays": ArrayRecord([np.arange(number)])}), reply_to=message)

    reply, context = report(handler)
    assert context.state["kept"]["pid"] != os.getpid()
    (array,) = reply.content["arrays"].values()
    assert array.numpy().tolist() == list(range(7))


def test_a_process_that_plays_several_devices_is_not_split(monkeypatch):
    monkeypatch.delenv(ALONE, raising=False)
    assert isolated(lambda *_: os.getpid())(None, context_of(CONFIG)) == os.getpid()


def test_a_child_that_is_killed_is_out_of_memory(report):
    with pytest.raises(OutOfMemoryError, match=r"^the system killed the process"):
        report(lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def test_an_allocation_that_fails_is_out_of_memory(report):
    with pytest.raises(OutOfMemoryError, match="no more is given"):
        report(lambda *_: bytearray(2**62))


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda *_: os._exit(3), 3),
        (lambda *_: os.kill(os.getpid(), signal.SIGTERM), -signal.SIGTERM),
        (lambda *_: os._exit(0), 0),
    ],
    ids=["exits", "is told to end", "says nothing"],
)
def test_a_child_that_ends_otherwise(report, end, status):
    with pytest.raises(MestFedError, match=f"ended with status {status}$"):
        report(end)


class OddError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InputError("wrong"), InputError, "wrong"),
        (ValueError("odd"), ValueError, "odd"),
        (OddError(1, 2), MestFedError, "OddError: 1 and 2"),
        (RuntimeError(threading.Lock()), MestFedError, "RuntimeError: <unlocked"),
    ],
    ids=["ours", "another", "made otherwise", "cannot be sent"],
)
def test_an_exception_comes_back(report, error, kind, text, capfd):
    def handler(*_):
        raise error

    with pytest.raises(kind, match=text):
        report(handler)
    # What is not ours has its traceback where it happened.
    assert ("Traceback" in capfd.readouterr().err) == (not isinstance(error, MestFedError))


def test_no_child_is_left(report):
    before = set(psutil.Process().children())  # of other tests, such as Ray's
    for handler in (lambda message, _: Message(RecordDict(), reply_to=message), lambda *_: 1 / 0):
        with suppress(ZeroDivisionError):
            report(handler)
    assert set(psutil.Process().children()) <= before


#: Answers two messages under a memory limit: the first takes too much, the second does not.
CODE = """
import os
from flwr.app import Context, Message, RecordDict
from mest_fed.client.isolation import isolated
from mest_fed.errors import MestFedError
input()
context = Context(1, 55, {}, RecordDict(), {})

def handler(size, _):
    block = b"x" * size
    return len(block)

for size in (400_000_000, 5):
    try:
        print(isolated(handler)(size, context))
    except MestFedError as error:
        print(error)
"""


def test_the_kernel_kills_the_child_alone():
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        env=os.environ | {ALONE: "1", "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process, limit_memory(200 * MB, pid=process.pid) as limit:
        if limit.cgroup_limit is None:
            process.kill()
            pytest.skip(f"no memory control group can be made here; {limit.kind} would hold it")
        output, _ = process.communicate("\n", timeout=120)
    first, second = output.splitlines()
    assert first.startswith("the system killed the process")
    assert second == "5"
    assert process.returncode == 0


def test_the_child_ends_with_its_parent():
    code = (
        "import os, time\n"
        "from flwr.app import Context, RecordDict\n"
        "from mest_fed.client.isolation import isolated\n"
        "def handler(*_):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(100)\n"
        "isolated(handler)(None, Context(1, 55, {}, RecordDict(), {}))\n"
    )
    environment = os.environ | {ALONE: "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
    _, alive = psutil.wait_procs([child], timeout=5)
    assert not alive
