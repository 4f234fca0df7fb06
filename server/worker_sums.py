"""Stock averaging strategies with partial sums: replies are averaged in the workers.

A strategy of Flower that needs of its replies no more than their weighted mean (FedAvg, and the
server's optimizers on top of it) becomes one that lets a fleet sum them::

    class SummedFedAdam(WorkerSums, FedAdam):
        pass

On a grid that cannot sum, as in a deployment, it behaves as its parent.
"""

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from mest_fed.folding import SummingGrid
from mest_fed.wire.arrays import as_numpy
from server.array_sum import ArraySum


@dataclass
class MeanFold:
    """Sums the arrays of replies, weighted by a metric. See :class:`mest_fed.folding.Fold`.

    Parameters
    ----------
    weighted_by : str
        Key of the metric.
    """

    weighted_by: str
    total: ArraySum | None = field(default=None, init=False)

    def lift(self, reply: Message) -> tuple[ArraySum, Message]:
        """Take the arrays out of a reply; its metrics stay.

        Raises
        ------
        ValueError
            If there is not one record of arrays and one of metrics, with a weight from 0.
        """
        content = reply.content
        (arrays,) = content.array_records.values()
        (metrics,) = content.metric_records.values()
        weight = float(metrics[self.weighted_by])  # type: ignore[arg-type]
        if not weight >= 0:
            raise ValueError(f"{self.weighted_by} = {weight} is no weight")
        total = ArraySum({name: as_numpy(array) for name, array in arrays.items()}, weight)
        left = copy(reply)
        left.content = RecordDict(
            {n: record for n, record in content.items() if not isinstance(record, ArrayRecord)}
        )
        return total, left

    def collect(self, total: ArraySum | None) -> None:
        """Keep the sum."""
        self.total = total


class WorkerSums(FedAvg):
    """Mix-in, to the left of a strategy that aggregates by weighted mean."""

    _fold: MeanFold | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure as the parent does, and offer the grid to sum the replies."""
        messages = super().configure_train(server_round, arrays, config, grid)
        self._dtypes = {name: array.dtype for name, array in arrays.items()}
        self._fold = None
        if isinstance(grid, SummingGrid):
            self._fold = MeanFold(self.weighted_by_key)
            grid.sum_in_workers(self._fold)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate as the parent does: one reply, the mean, instead of all."""
        replies = list(replies)
        total = None if self._fold is None else self._fold.total
        if total is not None:
            replies = self._combine(replies, total)
        return super().aggregate_train(server_round, replies)

    def _combine(self, replies: list[Message], total: ArraySum) -> list[Message]:
        failed = [reply for reply in replies if reply.has_error()]
        summed = [reply for reply in replies if not reply.has_error()]
        metrics = self.train_metrics_aggr_fn([r.content for r in summed], self.weighted_by_key)
        metrics[self.weighted_by_key] = total.weight
        mean = {
            name: Array((array / total.weight).astype(self._mean_type(name)))
            for name, array in total.sums().items()
        }
        combined = copy(summed[0])
        combined.content = RecordDict({"arrays": ArrayRecord(mean), "metrics": metrics})
        return [*failed, combined]

    def _mean_type(self, name: str) -> np.dtype[Any]:
        """Return the type of a mean: of whole numbers, too, it is a fraction."""
        sent = np.dtype(self._dtypes.get(name, "float64"))
        return sent if sent.kind == "f" else np.dtype("float64")


class SummedFedAvg(WorkerSums, FedAvg):
    """Federated averaging (McMahan et al. 2017) with partial sums in the workers."""
