"""The Flower ServerApp: the same under ``flwr run``, in deployment and in the simulated fleet."""

import math
from collections.abc import Callable
from logging import getLogger

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

import mest_fed
from mest_fed.data import Batches
from mest_fed.nn import read_state, write_state
from mest_fed.schema import TaskStatus
from mest_fed.server.deployed import DeployedRun
from mest_fed.server.exchange import DeviceGrid
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.modes import build_strategy
from mest_fed.server.rows import RoundObserver, RoundRecord
from mest_fed.server.strategy import MestStrategy
from mest_fed.task import TASKS, Task
from mest_fed.training import EVALUATION_BATCH, choose_device, evaluate


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

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate after a round (0: before training)."""
        del arrays  # the model is the strategy's
        record = self.strategy.record
        if server_round == 0 and self.strategy.first_round > 0:
            return None  # a resumed run has reported this round already
        metrics = None
        if self._due(record.round):
            write_state(self.model, self.strategy.model.state())
            test = self.task.data.test
            everything = Batches(test, np.arange(len(test)), EVALUATION_BATCH)
            totals, _ = evaluate(self.model, everything)
            record.accuracy = totals.accuracy
            metrics = MetricRecord({"accuracy": totals.accuracy})
            if math.isfinite(totals.mean_loss):  # a model that diverged has none
                record.loss = metrics["loss"] = totals.mean_loss
        self.observer(record)
        return metrics

    def _due(self, number: int) -> bool:
        server = self.task.config.server
        last = number == self.task.config.run.rounds
        return server.central_evaluation and (number % server.evaluate_every == 0 or last)


log = getLogger("flwr.mest_fed")

#: Prepares a strategy before it starts (a resumed run restores it) and gives what observes it.
Preparation = Callable[[Task, MestStrategy], RoundObserver]


def log_round(record: RoundRecord) -> None:
    """Log a round in one line."""
    accuracy = "-" if record.accuracy is None else f"{record.accuracy:.4f}"
    log.info(
        "round %d: accuracy %s, density %.4f; %d trained, %d failed, %d rejected; %d B up, %d down",
        record.round,
        accuracy,
        record.density,
        record.count(TaskStatus.OK),
        record.without_reply,
        record.count(TaskStatus.REJECTED),
        record.bytes_up,
        record.bytes_down,
    )


def build_server_app(prepare: Preparation | None = None) -> ServerApp:
    """Build the ServerApp.

    Parameters
    ----------
    prepare : callable, optional
        Called with the task and the strategy before the first round; returns the observer of the
        rounds. Without it the run is one of real devices, which is kept in a folder.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        log.info("mest-fed %s from %s", mest_fed.__version__, mest_fed.__file__)
        task = TASKS.get(context.run_config)
        model = task.build_model()
        strategy = build_strategy(task, GlobalModel.from_state(task.spec, read_state(model)))
        if prepare is not None:
            _run(strategy, grid, task, prepare(task, strategy))
            return
        devices = DeviceGrid(grid)
        with DeployedRun(task, strategy, devices, run_id=grid.run.run_id) as run:

            def observer(record: RoundRecord) -> None:
                run.round_done(record)
                log_round(record)

            # Real seconds; in virtual time the grid itself keeps the deadline.
            _run(strategy, devices, task, observer, task.config.fleet.deadline or None)
            run.finish()

    return app


def _run(
    strategy: MestStrategy,
    grid: Grid,
    task: Task,
    observer: RoundObserver,
    timeout: float | None = None,
) -> None:
    strategy.start(
        grid=grid,
        initial_arrays=strategy.arrays(),
        num_rounds=task.config.run.rounds - strategy.first_round,
        timeout=timeout,  # None waits for all
        evaluate_fn=CentralEvaluation(task, strategy, observer),
    )


app = build_server_app()
