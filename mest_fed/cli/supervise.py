"""Running a device's node: its end, whoever causes it, is the end of all its processes.

``mest-fed client`` becomes this process (``python -m mest_fed.cli.supervise JSON``) once all is
checked. It imports next to nothing: its memory is the device's, too.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from mest_fed.cgroups import Cgroup
from mest_fed.cli.status import FAILED, OK
from mest_fed.confinement import Confinement
from mest_fed.errors import MestFedError

#: Seconds between two looks at the node, and that it has to end by itself.
LOOK, PATIENCE = 0.2, 15.0
#: PR_SET_CHILD_SUBREAPER of <linux/prctl.h>.
_SUBREAPER = 36
_STOPS = (signal.SIGINT, signal.SIGTERM)


def become_supervisor(
    command: Sequence[str], environment: dict[str, str], stay: Confinement | None, limit: str
) -> NoReturn:
    """Replace this process by one that runs a node.

    Parameters
    ----------
    command : sequence of str
        What starts the node.
    environment : dict of str to str
        Its environment.
    stay : Confinement or None
        The control group that this process is in, to be left and removed in the end.
    limit : str
        The limit as it was typed, for the message that says it did not suffice.
    """
    job = {"command": list(command), "stay": stay and asdict(stay), "limit": limit}
    arguments = [sys.executable, "-m", "mest_fed.cli.supervise", json.dumps(job, default=str)]
    sys.stdout.flush()
    # Held back until there is somebody who leaves the group as well.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    os.execve(sys.executable, arguments, environment)


def run_node(command: Sequence[str], stay: Confinement | None, limit: str) -> int:
    """Run a node until it ends, is killed for memory, or this process is told to stop.

    Returns
    -------
    int
        The exit status of the command: 0, or 128 and the number of the signal that stopped it.

    Raises
    ------
    MestFedError
        If the kernel killed one of the node's processes for memory, or the node failed.
    """
    signals: list[int] = []
    for number in _STOPS:
        signal.signal(number, lambda received, _: signals.append(received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    try:
        # In a session of its own, so that Ctrl-C reaches it by this process alone.
        node = subprocess.Popen(command, start_new_session=True)
        while node.poll() is None and not signals and not _kills(stay):
            time.sleep(LOOK)
        status = node.poll()
        _end(node, stay)
    finally:
        kills = _kills(stay)
        if stay is not None:
            stay.end(os.getpid())
    if kills:
        raise MestFedError(
            f"the kernel killed a process of this node for memory (--memory-limit = {limit!r}); "
            "allowed: a larger limit, or a larger --margin, which makes the plan smaller"
        )
    if signals:
        return 128 + signals[0]
    if status == -signal.SIGKILL:
        raise MestFedError("the node was killed (SIGKILL), as the kernel does when memory runs out")
    if status:
        raise MestFedError(f"the node ended with status {status}; what it said stands above")
    return OK


def _kills(stay: Confinement | None) -> int:
    return 0 if stay is None else stay.group.kills()


def _end(node: "subprocess.Popen[bytes]", stay: Confinement | None) -> None:
    """End the node and all that it started: kindly, and then by force."""
    with suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and _alive(node):
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    for pid in stay.group.processes() if stay is not None else ():
        if pid != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    node.wait()


def _alive(node: "subprocess.Popen[bytes]") -> bool:
    """Say whether any process of the node's session lives."""
    if node.poll() is None:
        return True
    with suppress(ChildProcessError):
        while os.waitpid(-node.pid, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(node.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _adopt_orphans() -> None:
    """Have what the node leaves behind come to this process, which can see it end (Linux).

    In a container nobody else may do so, and an ended process that nobody sees looks alive.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _stay(plain: dict[str, Any] | None) -> Confinement | None:
    if plain is None:
        return None
    groups = {key: plain.pop(key) for key in ("group", "home")}
    for key, group in groups.items():
        folder, mount = Path(group["folder"]), Path(group["mount"])
        groups[key] = Cgroup(group["version"], folder, mount)
    return Confinement(**groups, **plain)


def _main(text: str) -> int:
    job = json.loads(text)
    _adopt_orphans()
    try:
        return run_node(job["command"], _stay(job["stay"]), job["limit"])
    except MestFedError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
