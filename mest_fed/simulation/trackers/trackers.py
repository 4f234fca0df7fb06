"""Trackers: the rows of ``rounds.jsonl`` in the formats of other tools, beneath the run folder.

Nothing here sends anything over a network.
"""

import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import Summary

from mest_fed.catalogue import TRACKERS
from mest_fed.config import RunConfig, to_flat
from mest_fed.errors import InputError
from mest_fed.run_rows.row import Row
from mest_fed.simulation.trackers.progress import FaultTolerantTracker, Observer


def open_trackers(names: Sequence[str], folder: Path) -> list[Observer]:
    """Return the named trackers of a run, each once; they write nothing before the run begins.

    A tracker that fails later on costs one line of warning, not the run.

    Raises
    ------
    InputError
        If a name is unknown, or the library behind it cannot be imported.
    """
    for name in names:
        TRACKERS.check(name)
    return [
        FaultTolerantTracker(f"--log {name}", _make(name, folder)) for name in dict.fromkeys(names)
    ]


def _make(name: str, folder: Path) -> Observer:
    try:
        tracker: Observer = TRACKERS.build(name, folder)
    except ImportError as error:
        raise InputError(f"--log {name}: {error}; run: pip install 'mest-fed[{name}]'") from None
    return tracker


def metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a round's row, those of nested tables as ``table/key``.

    ``round`` is left out: it is the step at which the others are logged.
    """
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{name}": number for name, number in metrics(value).items()}
        elif isinstance(value, int | float) and math.isfinite(value) and key != "round":
            flat[key] = float(value)
    return flat


_EXPERIMENT = "mest-fed"
_ROUNDS = "run.rounds"
_MOST_PARAMETERS = 100  # in one request, by MLflow's own limit


class MLflowTracker:
    """Metrics by round, the configuration as parameters.

    A resumed run goes on in the same MLflow run. What that holds already is not logged again. Where
    rounds were added, a tag ``run.rounds`` says how many there are: parameters cannot change.

    Parameters
    ----------
    folder : Path
        The run folder.
    """

    def __init__(self, folder: Path) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read at import
        from mlflow import MlflowClient, entities

        # Else its log tells of each new table, in a dozen lines.
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
            self._reopen(runs[0], config)
        else:
            self._create(config, name)
        for row in done:
            self.round_done(row)

    def round_done(self, row: Row) -> None:
        """Log a round, unless the store has it."""
        if row.get("stopped"):  # no more rounds come
            self._rounds = row["round"]
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

    def _reopen(self, run: Any, config: RunConfig) -> None:
        self._run_id = run.info.run_id
        rounds = str(config.run.rounds)
        if run.data.params.get(_ROUNDS) != rounds:  # parameters stay as they were first logged
            self._client.set_tag(self._run_id, _ROUNDS, rounds)
        self._client.update_run(self._run_id, "RUNNING")
        self._held = {
            point.step
            for key in run.data.metrics
            for point in self._client.get_metric_history(self._run_id, key)
        }


# tensorboardX has the event format in 0.7 MB. torch.utils.tensorboard would need TensorBoard itself
# (gRPC, a web server), and imports TensorFlow where that is installed. This writer is synchronous:
# the usual one has a thread, which a full disk kills; writers then wait for ever.


class TensorBoardTracker:
    """Scalars by round; every start of the run writes a file of its own.

    The file of a resumed run tells TensorBoard to forget all that came before, and holds it anew:
    whatever stopped the run before, each round is shown once.

    Parameters
    ----------
    folder : Path
        The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: EventsWriter | None = None
        self._began = 0.0

    def begin(self, config: RunConfig, name: str, done: Sequence[Row]) -> None:
        """Open the file and write the rounds that are done."""
        self._folder.mkdir(exist_ok=True)
        earlier = sum(1 for _ in self._folder.iterdir())
        self._writer = EventsWriter(str(self._folder / "events"), f".{earlier}")
        # Points stand at the wall-clock time that the run has taken, its pauses left out.
        self._began = time.time() - (done[-1]["wall_seconds"] if done else 0.0)
        if earlier:
            restart = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=self._began, step=0, session_log=restart))
        for row in done:
            self._write(row)
        self._writer.flush()

    def round_done(self, row: Row) -> None:
        """Write a round, so that a TensorBoard beside the run shows it."""
        if self._writer is not None:
            self._write(row)
            self._writer.flush()

    def end(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, row: Row) -> None:
        assert self._writer is not None
        scalars = [Summary.Value(tag=k, simple_value=v) for k, v in metrics(row).items()]
        at = self._began + row["wall_seconds"]
        event = Event(wall_time=at, step=row["round"], summary=Summary(value=scalars))
        self._writer.write_event(event)


class WandbTracker:
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
        if row.get("stopped"):  # no more rounds come
            self._rounds = row["round"]
        self._run.log(metrics(row), step=row["round"], commit=True)
        self._last = row["round"]

    def end(self) -> None:
        """Close the run, as failed where rounds are missing."""
        if self._run is not None:
            self._run.finish(exit_code=int(self._last != self._rounds))
            self._run = None
