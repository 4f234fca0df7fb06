"""Central evaluation of the global model on the test set."""

import math

import numpy as np
from flwr.app import ArrayRecord, MetricRecord

from mest_fed.data import Batches
from mest_fed.nn import write_state
from mest_fed.task import Task
from mest_fed.training import EVALUATION_BATCH, choose_device, evaluate
from server.rounds import RoundObserver
from server.strategy import MestStrategy


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
            tally, _ = evaluate(self.model, everything)
            record.accuracy = tally.accuracy
            metrics = MetricRecord({"accuracy": tally.accuracy})
            if math.isfinite(tally.mean_loss):  # a model that diverged has none
                record.loss = metrics["loss"] = tally.mean_loss
        self.observer(record)
        return metrics

    def _due(self, number: int) -> bool:
        server = self.task.config.server
        last = number == self.task.config.run.rounds
        return server.central_evaluation and (number % server.evaluate_every == 0 or last)
