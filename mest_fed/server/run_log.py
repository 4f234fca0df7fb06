"""``run.log``: warnings of a run and what its clients print, kept until its folder is there."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

#: Loggers whose warnings go to it: the engine and the checkpoints; in a deployment the server too.
RUN_LOG, SERVER_LOG = "mest_fed.run", __name__.rpartition(".")[0]
#: Loggers that get what clients print, and what the ServerApp of another's app prints.
CLIENT_LOG, SERVERAPP_LOG = f"{RUN_LOG}.clients", f"{RUN_LOG}.serverapp"
_PRINTED = (CLIENT_LOG, SERVERAPP_LOG)


#: The form of a line.
LINE = "%(asctime)s %(levelname)s %(message)s"


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
        file.setFormatter(logging.Formatter(LINE))
        self._handler.setTarget(file)
        self._handler.flush()
        self._handler.flushLevel = logging.NOTSET  # each at once


def is_kept(record: logging.LogRecord) -> bool:
    """Whether a record is a warning, or what an app prints."""
    return record.levelno >= (logging.INFO if record.name in _PRINTED else logging.WARNING)


@contextmanager
def logged(*names: str, keep: Callable[[logging.LogRecord], bool] = is_kept) -> Iterator[RunLog]:
    """Take in the warnings of a run, and what its clients print.

    Parameters
    ----------
    *names : str
        Of the loggers whose records are kept beside those of :data:`RUN_LOG`.
    keep : callable
        Which of their records are kept.
    """
    handler = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1)
    handler.addFilter(keep)
    levels = [(logger, logger.level) for logger in map(logging.getLogger, _PRINTED)]
    for logger, _ in levels:
        logger.setLevel(logging.INFO)
    loggers = [logging.getLogger(name) for name in (RUN_LOG, *names)]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield RunLog(handler)
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        for logger, level in levels:
            logger.setLevel(level)
        file = handler.target
        handler.close()
        if file is not None:
            file.close()


def log_failure(what: str, error: BaseException) -> None:
    """Write what failed, and its traceback: that of its cause, where a line stands for it."""
    logging.getLogger(RUN_LOG).error("%s: %s", what, error, exc_info=error.__cause__ or error)


@contextmanager
def shown_by_flower(name: str) -> Iterator[None]:
    """Have Flower's handlers print what a logger says, and stream it with the run's log."""
    logger, handlers = logging.getLogger(name), logging.getLogger("flwr").handlers
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
