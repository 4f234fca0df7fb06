"""``run.log``: what happened to a run beside its rounds, such as workers that died."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What reports to it: the engine and the checkpoints.
RUN_LOG = "mest_fed.run"


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append warnings of a run to a file, made when there is something to say."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger(RUN_LOG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
