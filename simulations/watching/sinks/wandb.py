"""A Weights & Biases run in ``wandb/``, offline: ``wandb sync`` uploads it when its owner wants."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mest_fed.config import RunConfig
from server.rows import Row
from simulations.watching.sinks.metrics import metrics


class WandbSink:
    """History by round, the configuration beside it.

    An offline run cannot be continued. So a resumed run writes all rounds to a new one under the
    same id and removes the old one: there is one folder to upload, and each round in it once.

    Parameters
    ----------
    folder : Path
        The run folder.
    """

    def __init__(self, folder: Path) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # read at import
        from wandb import Settings, init  # fails, too, on a mere folder of that name

        self._init: Any = init
        self._settings = Settings(
            console="off", silent=True, disable_git=True, x_disable_meta=True, x_disable_stats=True
        )
        self._folder = folder
        self._run: Any = None
        self._rounds = self._last = -1

    def begin(self, config: RunConfig, name: str, done: Sequence[Row]) -> None:
        """Open the offline run and log the rounds that are done."""
        earlier = sorted((self._folder / "wandb").glob("offline-run-*/run-*.wandb"))
        self._rounds = config.run.rounds
        self._run = self._init(
            mode="offline",
            dir=str(self._folder),
            project="mest-fed",
            id=earlier[-1].stem.removeprefix("run-") if earlier else None,
            name=name,
            config=config.model_dump(),
            settings=self._settings,
        )
        for row in done:
            self.round_done(row)
        for file in earlier:
            shutil.rmtree(file.parent)

    def round_done(self, row: Row) -> None:
        """Log a round."""
        self._run.log(metrics(row), step=row["round"], commit=True)
        self._last = row["round"]

    def end(self) -> None:
        """Close the run, as failed where rounds are missing."""
        if self._run is not None:
            self._run.finish(exit_code=int(self._last != self._rounds))
            self._run = None
