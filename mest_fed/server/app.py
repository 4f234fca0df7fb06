"""The Flower ServerApp: the same under ``flwr run``, in deployment and in the simulated fleet."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from logging import getLogger
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

import mest_fed
from mest_fed.config import own_errors
from mest_fed.data import Batches
from mest_fed.errors import InputError, ObjectiveError
from mest_fed.nn import UnsentBuffers, read_state, write_state
from mest_fed.process_tasks import PROCESS_TASKS
from mest_fed.run_rows.facts import Provenance
from mest_fed.run_rows.row import Row
from mest_fed.schema import LOSS, in_words
from mest_fed.server.deployed import DeployedRun
from mest_fed.server.exchange import DeviceGrid
from mest_fed.server.flower_internals import own_lines, plain_console
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.modes import build_strategy
from mest_fed.server.round_record import RoundObserver, RoundRecord, finite_only
from mest_fed.server.strategy import MestStrategy
from mest_fed.task import Task
from mest_fed.training import Metric, choose_device, evaluate
from mest_fed.training.programs import Programs
from mest_fed.units import format_bytes, format_seconds

log = getLogger("flwr.mest_fed")


class Stopped(Exception):
    """Leaves Flower's loop over the rounds: the run has come to what ``server.stop_when`` says."""


class CentralEvaluation:
    """Flower's ``evaluate_fn``: evaluates when due, then closes the round's record.

    Flower calls it last in every round, and once before the first.

    Parameters
    ----------
    task : Task
        Gives the model and the test set.
    strategy : MestStrategy
        Whose model is evaluated and whose record is completed.
    observer : callable
        Receives each completed record.
    """

    def __init__(self, task: Task, strategy: MestStrategy, observer: RoundObserver) -> None:
        self.task = task
        self.strategy = strategy
        self.observer = observer
        self.model = task.build_model().to(choose_device(task.config.training.device))
        self._forward = Programs(self.model).forward if task.compiles() else None
        self._unsent = UnsentBuffers(self.model)

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate after a round (0: before training).

        Raises
        ------
        Stopped
            If the run ends here; the round's record is complete.
        """
        del arrays  # the model is the strategy's
        strategy, record = self.strategy, self.strategy.record
        if server_round == 0 and strategy.first_round > 0:
            return None  # a resumed run has reported this round already
        due = self._due(record.round)
        if due:
            record.metrics = self._evaluate()
            record.diverged = LOSS.name not in record.metrics
        strategy.note_evaluation()
        record.stopped = stopped = strategy.progress.stopped
        if stopped and strategy.hold_target() and due:
            record.metrics = self._evaluate()
        self.observer(record)
        if stopped:
            log.info("the run stops: %s", stopped)
            raise Stopped
        return MetricRecord(dict(record.metrics)) if due else None

    def finish(self) -> None:
        """End the run with the model that it keeps, whose metrics are then known."""
        if self.strategy.take_best() and self.task.config.server.central_evaluation:
            self.strategy.final_metrics = self._evaluate()

    def _evaluate(self) -> dict[str, float]:
        write_state(self.model, self.strategy.model.state())
        self._unsent.restore()  # a resumed run finds them as a run without a stop does
        test = self.task.data.test
        everything = Batches(test, np.arange(len(test)), self.task.evaluation_batch)
        objective = self.task.objective
        try:
            # What is not finite is of a model that diverged.
            found = evaluate(self.model, everything, objective, self._forward)
            return finite_only(found.values(objective))
        except ObjectiveError as error:
            name, number = self.task.config.task.name, self.strategy.record.round
            raise InputError(
                f"task.name = {name!r}: central evaluation, round {number}: {error}"
            ) from None

    def _due(self, number: int) -> bool:
        server = self.task.config.server
        last = number == self.task.config.run.rounds
        return server.central_evaluation and (number % server.evaluate_every == 0 or last)


#: Prepares a strategy before it starts (a resumed run restores it) and gives what observes it.
Preparation = Callable[[Task, MestStrategy], RoundObserver]
#: Joins a run's grid with others for as long as the run is served.
Joining = Callable[[Task, Grid], AbstractContextManager[Grid]]


def log_round(row: Row, primary: Metric) -> None:
    """Log a round in one line: metrics, how its tasks ended, and the time since the run began."""
    judged = [primary] if primary == LOSS else [primary, LOSS]
    metrics = [f"{each.name} {each.format(row['metrics'].get(each.name))}" for each in judged]
    if (spread := row["client_metrics"].get(primary.name)) is not None:
        metrics.append(f"on devices' own examples {primary.format(spread['mean'])}")
    log.info(
        "round %d: %s, density %.4f; tasks: %s; %s up, %s down; %s",
        row["round"],
        ", ".join(metrics),
        row["density"],
        in_words(row["tasks"]) or "none",
        format_bytes(row["bytes_up"]),
        format_bytes(row["bytes_down"]),
        format_seconds(row["wall_seconds"]),
    )


def build_server_app(
    prepare: Preparation | None = None,
    *,
    bundle: Path | None = None,
    join: Joining = lambda _, grid: nullcontext(grid),
    about: Provenance | None = None,
) -> ServerApp:
    """Build the ServerApp.

    Parameters
    ----------
    prepare : callable, optional
        Called with the task and the strategy before the first round; returns the observer of the
        rounds. Without it the run is one of real devices, which is kept in a folder.
    bundle : Path, optional
        The folder of the app that Flower runs: a checkpoint names files in it by relative paths,
        since another version of the app is in another folder.
    join : callable, optional
        Called with the task and the grid of real devices; the run is of the nodes of the grid that
        it gives.
    about : Provenance, optional
        What the folder of a run of real devices says of it.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        if prepare is None:
            plain_console()
        log.info("mest-fed %s from %s", mest_fed.__version__, mest_fed.__file__)
        task = PROCESS_TASKS.get(context.run_config)
        with own_errors(task.config):
            if prepare is not None:
                strategy = _strategy_of(task)
                _run(strategy, grid, task, prepare(task, strategy))
                return
            with join(task, grid) as joined:
                _serve_devices(task, joined, bundle, about)

    return app


def _strategy_of(task: Task) -> MestStrategy:
    model = task.build_model()
    return build_strategy(task, GlobalModel.from_state(task.spec, read_state(model)))


def _serve_devices(task: Task, grid: Grid, bundle: Path | None, about: Provenance | None) -> None:
    """Run the server's part with real devices, from the first round to the last."""
    strategy = _strategy_of(task)
    if (reason := task.why_torch({})) is not None:
        log.warning("%s", reason)
    devices = DeviceGrid(grid)
    kept = DeployedRun(task, strategy, devices, run_id=grid.run.run_id, bundle=bundle, about=about)
    with kept as run:

        def observer(record: RoundRecord) -> None:
            log_round(run.round_done(record), task.objective.primary)

        # Real seconds; in virtual time the grid itself keeps the deadline.
        _run(strategy, devices, task, observer, task.config.fleet.deadline or None)
        run.finish()


def _run(
    strategy: MestStrategy,
    grid: Grid,
    task: Task,
    observer: RoundObserver,
    timeout: float | None = None,
) -> None:
    evaluation = CentralEvaluation(task, strategy, observer)
    done = strategy.progress.stopped or strategy.first_round >= task.config.run.rounds
    with own_lines(), suppress(Stopped):  # server.stop_when: the run ends before its last round
        strategy.start(
            grid=grid,
            initial_arrays=strategy.arrays(),
            num_rounds=0 if done else task.config.run.rounds - strategy.first_round,
            timeout=timeout,  # None waits for all
            evaluate_fn=evaluation,
        )
    evaluation.finish()
