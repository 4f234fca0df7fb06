"""Processes that carry a mark in their environment, and end with the process that it names.

A guard process (:func:`guard_command`) ends them when its standard input is closed. It runs beside
the driver for as long as a session lasts, so it is small: this file imports the standard library
and :mod:`mest_fed.system.proc` alone. Linux only, where a process's environment can be read.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mest_fed
from mest_fed.system.proc import process_ids, process_namespace, read_stat, read_variable

#: The variable. Its value is ``NAMESPACE/PID/START/...``: of the driver, and what tells sessions
#: of one driver apart.
NAME = "MEST_FED_RAY_SESSION"


#: What the guard runs, without site-packages: where the package is, and a mark, are its arguments.
_GUARD = """
import sys
sys.path.insert(0, sys.argv[1])
from mest_fed.simulation.engine.marked import end_session
sys.stdin.buffer.read()
end_session(sys.argv[2])
"""


def guard_command(mark: str) -> list[str]:
    """Return the command of a process that ends all marked ones when its input is closed."""
    package = str(Path(mest_fed.__file__).parents[1])
    return [sys.executable, "-I", "-S", "-c", _GUARD, package, mark]


def own_mark() -> str:
    """Return the mark of this process."""
    return _mark_of(os.getpid()) or "///"


def end_orphans() -> None:
    """End all marked processes whose driver has gone."""
    alive: dict[str, bool] = {}
    here = process_namespace()
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
    for pid in process_ids():
        mark = None if pid == os.getpid() else read_variable(pid, NAME)
        if mark is not None:
            yield pid, mark


def _mark_of(pid: int) -> str | None:
    """Return the first three parts of a process's mark; None if it has ended."""
    stat = read_stat(pid)
    return None if stat is None else f"{process_namespace()}/{pid}/{stat.start}"


def _kill(pid: int) -> bool:
    with suppress(OSError):  # it has ended, or is another user's
        os.kill(pid, signal.SIGKILL)
        return True
    return False
