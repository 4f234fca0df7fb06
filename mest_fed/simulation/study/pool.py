"""The processes that run a study's cells: started, given jobs, replaced, interrupted."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

#: Seconds that an interrupted run has for its checkpoint.
TO_STOP = 60.0
_MODULE = "mest_fed.simulation.study.runner"


@dataclass(frozen=True)
class Job:
    """A run that is to be done.

    Parameters
    ----------
    run : str
        Name of its folder.
    name : str
        What its configuration is called.
    folder : Path
        Where it goes.
    config : mapping
        Flat.
    resume : bool
        Whether it goes on from a checkpoint.
    """

    run: str
    name: str
    folder: Path
    config: dict[str, Any]
    resume: bool

    def as_line(self, command: Sequence[str]) -> str:
        """Return it as a runner reads it."""
        table = vars(self) | {"folder": str(self.folder), "command": list(command)}
        return json.dumps(table) + "\n"


#: Takes the name of a run and an event of it.
Watch = Callable[[str, dict[str, Any]], None]


class Runner:
    """A process, with the job that it has.

    Parameters
    ----------
    workers : int
        Of each run.
    address : str or None
        Ray cluster to join.
    log : file
        For what it prints.
    events : queue
        Gets (runner, event); an event of None: the process has ended.
    """

    def __init__(
        self, workers: int, address: str | None, log: IO[bytes], events: "queue.SimpleQueue[Any]"
    ) -> None:
        self.job: Job | None = None
        self.ended = False  # whether the event that its job has ended was taken
        self.process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(workers), address or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C is for the study, which tells the runners
            text=True,
        )
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: "queue.SimpleQueue[Any]") -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                events.put((self, json.loads(line)))
        self.process.wait()
        events.put((self, None))

    def give(self, job: Job, command: Sequence[str]) -> None:
        """Have it do a job; one that has died says so by its end."""
        self.job = job
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(job.as_line(command))
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return

    def dismiss(self) -> None:
        """Let it end; nothing more can be given to it."""
        self.job = None
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            return

    def interrupt(self) -> None:
        """Have it write a checkpoint and end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    @property
    def last_words(self) -> str:
        """Say how the process ended."""
        code = self.process.poll()
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "; memory may have run out" if -code == signal.SIGKILL else ""
            return f"its process was ended by {name}{hint}"
        return f"its process ended with status {code}"


class Pool:
    """Runs jobs in a few processes.

    Parameters
    ----------
    processes : int
        How many at a time.
    workers : int
        Of all of them together; 0: clients run in the processes themselves.
    address : str or None
        Ray cluster to join.
    log : Path
        For what they print.
    """

    def __init__(self, processes: int, workers: int, address: str | None, log: Path) -> None:
        self._processes, self._address, self._log = processes, address, log
        self._workers = max(1, workers // processes) if workers else 0
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._runners: list[Runner] = []

    def run(self, jobs: Iterable[Job], watch: Watch) -> None:
        """Do all jobs.

        Parameters
        ----------
        jobs : iterable of Job
            In order.
        watch : callable
            Takes what is told of a run. Its last event is ``done``, ``failed`` or ``interrupted``.

        Raises
        ------
        KeyboardInterrupt
            On Ctrl-C, after all that run have written a checkpoint, or were given a minute to.
        """
        waiting = deque(jobs)
        with self._log.open("ab") as log:
            try:
                for _ in range(min(self._processes, len(waiting))):
                    self._start(waiting, log)
                while self._runners:
                    self._take(waiting, log, watch, 0.25)
            except BaseException:
                self._stop(log, watch)
                raise

    def _start(self, waiting: "deque[Job]", log: IO[bytes]) -> None:
        runner = Runner(self._workers, self._address, log, self._events)
        self._runners.append(runner)
        runner.give(waiting.popleft(), sys.argv)

    def _take(self, waiting: "deque[Job]", log: IO[bytes], watch: Watch, patience: float) -> None:
        """Take one event, if there is one in time."""
        try:
            runner, event = self._events.get(timeout=patience)
        except queue.Empty:
            return
        job = runner.job
        if event is None:
            self._runners.remove(runner)
            runner.dismiss()
            if job is not None:
                watch(job.run, {"event": "failed", "reason": runner.last_words})
            if waiting:
                self._start(waiting, log)
        elif job is not None:
            watch(job.run, event)
            if event.get("last") or event["event"] == "interrupted":
                runner.job = None
            elif event["event"] in ("done", "failed"):
                if waiting:
                    runner.give(waiting.popleft(), sys.argv)
                else:
                    runner.dismiss()

    def _stop(self, log: IO[bytes], watch: Watch) -> None:
        """Interrupt all, and wait for their checkpoints; a second Ctrl-C does not wait."""
        for runner in self._runners:
            runner.interrupt()
        until = time.monotonic() + TO_STOP
        try:
            while self._runners and time.monotonic() < until:
                self._take(deque(), log, watch, 0.25)
        finally:
            for runner in self._runners:
                runner.process.kill()
                runner.process.wait()
                runner.dismiss()
