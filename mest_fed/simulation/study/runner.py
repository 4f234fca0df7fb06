"""A process that runs cells of a study, one after the other: ``python -m`` this module.

It reads jobs from standard input and tells of them on standard output, a line of JSON each. A
process of its own keeps a study safe from what ends a process; that it runs many cells spares
each of them the loading of libraries and the start of Ray. An interruption, or the end of its
standard input during a run, makes the run write a checkpoint.
"""

import json
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Tell = Callable[..., None]
#: Wall-clock seconds after which a client counts as hung, as ``mest-fed simulate`` has it.
PATIENCE = 3600.0


class Teller:
    """An observer of a run that tells of it.

    Parameters
    ----------
    tell : callable
        Takes a kind of event and what there is to it.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def begin(self, config: Any, name: str, done: Sequence[Any]) -> None:
        """Tell how many rounds there are, and were before."""
        self._tell("begin", rounds=config.run.rounds, done=done[-1]["round"] if done else 0)

    def round_done(self, row: Any) -> None:
        """Tell of a round."""
        self._tell("round", round=row["round"], metrics=row["metrics"])

    def end(self) -> None:
        """Do nothing: the job itself ends."""

    def phase(self, text: str) -> None:
        """Tell what begins."""
        self._tell("phase", text=text)

    def note(self, text: str) -> None:
        """Do nothing: the run's log has it."""

    def task_ended(self, kind: str) -> None:
        """Do nothing."""

    def tasks_done(self, rows: Sequence[Any]) -> None:
        """Do nothing."""


def run_cell(job: dict[str, Any], workers: int, address: str | None, tell: Tell) -> None:
    """Run a cell, or go on with it, and write its report."""
    from mest_fed.config import from_flat
    from mest_fed.process_tasks import PROCESS_TASKS
    from mest_fed.simulation.report import read_summary, write_report
    from mest_fed.simulation.simulate import open_run

    sys.argv = job["command"]  # which the run's provenance says
    folder = Path(job["folder"])
    config = None if job["resume"] else from_flat(job["config"])
    try:
        run = open_run(job["name"], config, folder, resume=job["resume"], observer=Teller(tell))
        run.run(workers, address, patience=PATIENCE)
    finally:
        PROCESS_TASKS.forget()
    tell("phase", text="writing the report")
    write_report(folder)
    tell("done", warning=read_summary(folder).warning or "")


def try_cell(job: dict[str, Any], workers: int, address: str | None, tell: Tell) -> bool:
    """Run a cell and tell how it ended; return whether another may follow."""
    from mest_fed.described import described
    from mest_fed.errors import MestFedError
    from mest_fed.simulation.rounds import Interrupted

    try:
        run_cell(job, workers, address, tell)
    except (KeyboardInterrupt, Interrupted):
        tell("interrupted")
        return False
    except MestFedError as error:
        tell("failed", reason=" ".join(str(error).split()))
    except Exception as error:  # whatever it is, the other cells go on
        traceback.print_exc()
        tell("failed", reason=" ".join(described(error).split()))
    return True


@contextmanager
def _ray(workers: int, address: str | None) -> Iterator[None]:
    """Have one Ray session for all cells."""
    if not workers:
        yield
        return
    from mest_fed.simulation.engine.ray_session import Session

    session = Session(workers, address)
    try:
        yield
    finally:
        session.end()


def main() -> None:
    """Run the jobs on standard input until it ends."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # libraries swallow what they raise
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what else is printed goes to the study's log
    workers, address = int(sys.argv[1]), sys.argv[2] or None
    jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    busy, alone = threading.Event(), threading.Event()
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from mest_fed.errors import MestFedError
    from mest_fed.simulation import simulate  # noqa: F401

    for name in ("flwr", "mest_fed.server"):  # a run's log says the same
        logging.getLogger(name).setLevel(logging.ERROR)

    def tell(kind: str, **facts: Any) -> None:
        channel.write(json.dumps({"event": kind, **facts}) + "\n")
        channel.flush()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line))
        jobs.put(None)
        alone.set()
        if busy.is_set():  # nobody waits for the run any more
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=listen, daemon=True).start()
    try:
        with _ray(workers, address):
            while (job := jobs.get()) is not None:
                busy.set()
                if alone.is_set():
                    break
                more = try_cell(job, workers, address, tell)
                busy.clear()
                if not more:
                    break
    except KeyboardInterrupt:
        tell("interrupted")
    except MestFedError as error:  # Ray cannot start
        tell("failed", reason=" ".join(str(error).split()), last=True)
    except BrokenPipeError:  # the study has gone
        pass
    sys.stdout.flush()
    os._exit(0)  # the thread that listens holds standard input


if __name__ == "__main__":
    main()
