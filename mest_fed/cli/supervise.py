"""Running a device's node: when it ends, for any reason, all its processes end.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from mest_fed.cli.app import FAILED, OK
from mest_fed.errors import MestFedError
from mest_fed.system.cgroups import Cgroup, CgroupLimit
from mest_fed.system.proc import read_stat

#: Seconds between two looks at the node, and that it has to end by itself.
LOOK, PATIENCE = 0.2, 15.0
#: PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of <linux/prctl.h>.
_DEATH_SIGNAL, _SUBREAPER = 1, 36
_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Job:
    """A node to be run.

    Parameters
    ----------
    command : sequence of str
        What starts it.
    link : str
        The SuperLink, as ``python -m mest_fed.cli.superlink`` reads it: asked for the cause if the
        node ends by itself. Empty: no question is asked.
    limit : str
        The memory limit as it was typed, for messages.
    cgroup_limit : CgroupLimit or None
        The control group that this process is in, to be left and removed in the end.
    """

    command: Sequence[str]
    link: str = ""
    limit: str = ""
    cgroup_limit: CgroupLimit | None = None

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Read what :meth:`as_json` wrote."""
        plain = json.loads(text)
        return cls(**plain | {"cgroup_limit": _cgroup_limit(plain["cgroup_limit"])})

    def as_json(self) -> str:
        """Write it as an argument of a process."""
        return json.dumps(asdict(self), default=str)


def become_supervisor(job: Job, environment: dict[str, str]) -> NoReturn:
    """Replace this process by one that runs a node in an environment."""
    arguments = [sys.executable, "-m", "mest_fed.cli.supervise", job.as_json()]
    sys.stdout.flush()
    # Held back until there is a handler that leaves the group as well.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    os.execve(sys.executable, arguments, environment)


def run_node(job: Job) -> int:
    """Run a node until it ends or a signal stops this process.

    A process of the node that the kernel kills for memory costs the round that it worked for. Only
    where it was one that the node cannot do without is it the end.

    Returns
    -------
    int
        The exit status of the command: 128 and the number of the signal that stopped it; that of
        the request to the SuperLink, if the node ended by itself and the SuperLink says why; else
        ``FAILED``.

    Raises
    ------
    MestFedError
        If the kernel killed a process that the node needs, or the node ended for no cause that the
        SuperLink knows.
    """
    signals: list[int] = []
    for number in _STOPS:
        signal.signal(number, lambda received, _: signals.append(received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    kills, status, crippled = _kills(job.cgroup_limit), None, False
    try:
        # In a session of its own, so that Ctrl-C reaches it by this process alone.
        node = subprocess.Popen(job.command, start_new_session=True, preexec_fn=_end_with_parent)
        while node.poll() is None and not signals and not crippled:
            time.sleep(LOOK)
            if (now := _kills(job.cgroup_limit)) > kills:
                kills, crippled = now, not _has_child(node, job.cgroup_limit)
                if node.poll() is None and not crippled:
                    _say_killed(job)
        status = node.poll()
        end_node(node, job.cgroup_limit)
    finally:
        killed = crippled or (status == -signal.SIGKILL and _kills(job.cgroup_limit) > 0)
        if job.cgroup_limit is not None:
            job.cgroup_limit.leave(os.getpid())
    if killed:
        raise MestFedError(
            f"the kernel killed a process of this node for memory (--memory-limit = {job.limit!r}"
            "); allowed: a larger limit, or a larger --margin, which makes the plan smaller"
        )
    if signals:
        return 128 + signals[0]
    if status == -signal.SIGKILL:
        raise MestFedError("the node was killed (SIGKILL), as the kernel does when memory runs out")
    return _cause(job, status)


def _cause(job: Job, status: int | None) -> int:
    """Ask the SuperLink why a node ended by itself; return the exit status."""
    if job.link:
        command = [sys.executable, "-m", "mest_fed.cli.superlink", job.link]
        answer = subprocess.run(command, check=False).returncode
        if answer != OK:
            return answer
    if status:
        raise MestFedError(f"the node ended with status {status}; what it said stands above")
    raise MestFedError(
        "the node ended by itself (status 0), as Flower's does when the SuperLink no longer knows "
        "it: it was unregistered, or the SuperLink was started anew without --database"
    )


def _say_killed(job: Job) -> None:
    print(
        f"the kernel killed a process of this node for memory (--memory-limit = {job.limit!r}); "
        "its round has failed, the node stays",
        file=sys.stderr,
        flush=True,
    )


def _end_with_parent() -> None:
    """Have the kernel tell this new process to stop when its parent has ended (Linux)."""
    with suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)


def _has_child(node: "subprocess.Popen[bytes]", cgroup_limit: CgroupLimit | None) -> bool:
    """Return whether a child of the node runs: its SuperExec, which works on all messages.

    The kernel says that it has killed a process before that one is gone.
    """
    time.sleep(LOOK)
    for pid in cgroup_limit.group.processes() if cgroup_limit is not None else ():
        stat = read_stat(pid)
        if stat is not None and stat.parent == node.pid:
            return True
    return False


def _kills(cgroup_limit: CgroupLimit | None) -> int:
    return 0 if cgroup_limit is None else cgroup_limit.group.kills()


def end_node(node: "subprocess.Popen[bytes]", cgroup_limit: CgroupLimit | None) -> None:
    """End a node and all that it started: by SIGTERM, and what still runs then by SIGKILL."""
    with suppress(ProcessLookupError):  # all of its processes have ended
        os.killpg(node.pid, signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and _alive(node):
        time.sleep(0.05)
    with suppress(ProcessLookupError):  # as above
        os.killpg(node.pid, signal.SIGKILL)
    for pid in cgroup_limit.group.processes() if cgroup_limit is not None else ():
        if pid != os.getpid():
            with suppress(ProcessLookupError):  # it has ended
                os.kill(pid, signal.SIGKILL)
    node.wait()


def _alive(node: "subprocess.Popen[bytes]") -> bool:
    """Return whether any process of the node's session still runs."""
    if node.poll() is None:
        return True
    with suppress(ChildProcessError):  # none of the session is a child of this process
        while os.waitpid(-node.pid, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(node.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _adopt_orphans() -> None:
    """Have what the node leaves behind come to this process, which can see it end (Linux).

    In a container no other process may do so, and an ended process without a parent looks alive.
    """
    with suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _cgroup_limit(plain: dict[str, Any] | None) -> CgroupLimit | None:
    if plain is None:
        return None
    groups = {key: plain.pop(key) for key in ("group", "parent_group")}
    for key, group in groups.items():
        folder, mount = Path(group["folder"]), Path(group["mount"])
        groups[key] = Cgroup(group["version"], folder, mount)
    return CgroupLimit(**groups, **plain)


def _main(text: str) -> int:
    _adopt_orphans()
    try:
        return run_node(Job.from_json(text))
    except MestFedError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
