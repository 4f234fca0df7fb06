"""The Flower ServerApp: the same under ``flwr run``, in deployment and in the simulated fleet."""

from collections.abc import Callable
from logging import getLogger

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import mest_fed
from mest_fed.nn import read_state
from mest_fed.schema import TaskStatus
from mest_fed.task import Task, task_from_run_config
from server.deployed import DeployedRun
from server.evaluation import CentralEvaluation
from server.exchange import DeviceGrid
from server.global_model import GlobalModel
from server.modes import build_strategy
from server.rounds import RoundObserver, RoundRecord
from server.strategy import MestStrategy

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
        task = task_from_run_config(context.run_config)
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
