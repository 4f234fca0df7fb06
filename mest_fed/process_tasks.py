"""The tasks of this process, which the clients that it plays share.

Flower hands an app a message and its context, nothing that the process made. This is the one place
in which a process keeps something for them.
"""

from collections.abc import Mapping
from threading import Lock

from mest_fed.config import from_flat
from mest_fed.config.load import Scalar
from mest_fed.task import Task


class ProcessTasks:
    """The tasks of this process, by run config; the oldest are dropped.

    Flower hands a ClientApp a message and its node's context, nothing that this process made. So
    what its clients share, and what the process was given for them, is kept here.

    Parameters
    ----------
    keep : int
        How many tasks are kept.
    """

    def __init__(self, keep: int = 8) -> None:
        self._keep = keep
        self._tasks: dict[object, Task] = {}
        self._lock = Lock()

    def get(self, run_config: Mapping[str, Scalar], own_data: str = "") -> Task:
        """Return the task of a run config, which is built if it is not here.

        Parameters
        ----------
        run_config : mapping of str to scalar
            As Flower gives it.
        own_data : str
            Where a device's own examples are; empty where devices share a data set.

        Raises
        ------
        InputError
            If a key or value of the run config, or the device's own data, is wrong.
        """
        key = _key(run_config, own_data)  # its hash takes microseconds, so one look-up
        task = self._tasks.get(key)
        if task is not None:
            return task
        config = from_flat(run_config)
        return self._put(key, Task.with_own_data(config, own_data) if own_data else Task(config))

    def put(self, run_config: Mapping[str, Scalar], task: Task) -> Task:
        """Give the clients of a run config a task; return it."""
        return self._put(_key(run_config, ""), task)

    def forget(self) -> None:
        """Drop all tasks, and with them their data: no client of theirs will come again."""
        with self._lock:
            self._tasks.clear()

    def _put(self, key: object, task: Task) -> Task:
        with self._lock:
            self._tasks.pop(key, None)
            self._tasks[key] = task
            while len(self._tasks) > self._keep:
                del self._tasks[next(iter(self._tasks))]
        return task


def _key(run_config: Mapping[str, Scalar], own_data: str) -> object:
    return own_data, tuple(sorted(run_config.items()))


#: The tasks of this process.
PROCESS_TASKS = ProcessTasks()
