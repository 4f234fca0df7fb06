"""An MLflow store in ``mlflow.db`` with one run in it."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mest_fed.config import RunConfig, to_flat
from server.rows import Row
from simulations.watching.sinks.metrics import metrics

_EXPERIMENT = "mest-fed"
_MOST_PARAMETERS = 100  # in one request, by MLflow's own limit


class MLflowSink:
    """Metrics by round, the configuration as parameters.

    A resumed run goes on in the same MLflow run. What that holds already is not logged again.

    Parameters
    ----------
    folder : Path
        The run folder.
    """

    def __init__(self, folder: Path) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read at import
        from mlflow import MlflowClient, entities

        # Else the making of its tables is told in a dozen lines.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._client_of: Any = MlflowClient
        self._entities: Any = entities
        self._folder = folder
        self._client: Any = None
        self._run_id = ""
        self._held: set[int] = set()

    def begin(self, config: RunConfig, name: str, done: Sequence[Row]) -> None:
        """Open the store and its run, and log what is missing of the rounds that are done."""
        self._rounds = config.run.rounds
        self._client = self._client_of(tracking_uri=f"sqlite:///{self._folder / 'mlflow.db'}")
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        runs = self._client.search_runs([experiment.experiment_id]) if experiment else []
        if runs:
            self._reopen(runs[0])
        else:
            self._create(config, name)
        for row in done:
            self.round_done(row)

    def round_done(self, row: Row) -> None:
        """Log a round, unless the store has it."""
        if row["round"] in self._held:
            return
        now = int(1000 * time.time())
        points = [
            self._entities.Metric(key, value, now, row["round"])
            for key, value in metrics(row).items()
        ]
        self._client.log_batch(self._run_id, metrics=points)
        self._held.add(row["round"])

    def end(self) -> None:
        """Mark the run as finished, or as killed where rounds are missing."""
        if self._run_id:
            whole = self._rounds in self._held
            self._client.set_terminated(self._run_id, "FINISHED" if whole else "KILLED")
            self._run_id = ""

    def _create(self, config: RunConfig, name: str) -> None:
        experiment = self._client.create_experiment(
            _EXPERIMENT, artifact_location=(self._folder.resolve() / "mlruns").as_uri()
        )
        self._run_id = self._client.create_run(experiment, run_name=name).info.run_id
        params = [self._entities.Param(key, str(value)) for key, value in to_flat(config).items()]
        for start in range(0, len(params), _MOST_PARAMETERS):
            self._client.log_batch(self._run_id, params=params[start : start + _MOST_PARAMETERS])

    def _reopen(self, run: Any) -> None:
        self._run_id = run.info.run_id
        self._client.update_run(self._run_id, "RUNNING")
        self._held = {
            point.step
            for key in run.data.metrics
            for point in self._client.get_metric_history(self._run_id, key)
        }
