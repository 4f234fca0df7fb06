"""``run.log``: what happened to a run beside its rounds, such as workers that died."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

#: What reports to it: the engine and the checkpoints.
RUN_LOG = "mest_fed.run"


class RunLog:
    """Keeps the warnings of a run until its folder is there, and writes them into it from then on.

    Parameters
    ----------
    handler : MemoryHandler
        Of the logger.
    """

    def __init__(self, handler: MemoryHandler) -> None:
        self._handler = handler

    def write_to(self, path: Path) -> None:
        """Append to a file, made when there is something to say."""
        file = logging.FileHandler(path, encoding="utf-8", delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._handler.setTarget(file)
        self._handler.flush()
        self._handler.flushLevel = logging.NOTSET  # each at once


@contextmanager
def logged() -> Iterator[RunLog]:
    """Take in the warnings of a run."""
    handler = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1)
    logger = logging.getLogger(RUN_LOG)
    logger.addHandler(handler)
    try:
        yield RunLog(handler)
    finally:
        logger.removeHandler(handler)
        file = handler.target
        handler.close()
        if file is not None:
            file.close()
