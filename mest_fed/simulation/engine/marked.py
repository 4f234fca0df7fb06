"""Processes that carry a mark in their environment, and end with the process that it names.

As a script, with a mark: waits until its standard input is closed, then ends them. It runs beside
the driver for as long as a session lasts, so it is small: it imports the standard library alone.
Linux only, where a process's environment can be read.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress

#: The variable. Its value is ``NAMESPACE/PID/START/...``: of the driver, and what tells sessions
#: of one driver apart.
NAME = "MEST_FED_RAY_SESSION"


def possible() -> bool:
    """Say whether this system shows processes' environments."""
    return os.path.exists("/proc/self/environ")


def own_mark() -> str:
    """Return the mark of this process."""
    return _mark_of(os.getpid()) or "///"


def end_orphans() -> None:
    """End all marked processes whose driver has gone."""
    alive: dict[str, bool] = {}
    here = _namespace()
    for pid, mark in _marked():
        namespace, _, rest = mark.partition("/")
        driver = rest.partition("/")[0]
        if namespace != here or not driver.isdecimal():
            continue  # its number means nothing here: another container's
        if mark not in alive:
            present = _mark_of(int(driver))
            alive[mark] = present is not None and mark.startswith(f"{present}/")
        if not alive[mark]:
            _kill(pid)


def end_session(mark: str) -> None:
    """End all processes with a mark. Those that they start meanwhile carry it as well."""
    while found := [pid for pid, other in _marked() if other == mark and _kill(pid)]:
        del found


def _marked() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        with suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
            for item in file.read().split(b"\0"):
                if item.startswith(f"{NAME}=".encode()):
                    yield int(name), item.decode(errors="replace").partition("=")[2]


def _mark_of(pid: int) -> str | None:
    """Return the first three parts of a process's mark; None if it has ended."""
    with suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        state, *rest = file.read().rpartition(")")[2].split()
        if state not in "ZX":
            return f"{_namespace()}/{pid}/{rest[18]}"
    return None


def _namespace() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _kill(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end_session(sys.argv[1])
