"""Synchronous rounds whose replies are checked and summed where they are made, if the grid can."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from mest_fed.schema import FailureKind
from mest_fed.server.aggregation.aggregate import Aggregate
from mest_fed.server.aggregation.masked import MaskedMean
from mest_fed.server.aggregation.partial import PairwiseSum, SummingGrid
from mest_fed.server.aggregation.tiers import CohortMember, MaskedAggregator
from mest_fed.server.instructions import SentTask
from mest_fed.server.modes.arrivals import ArrivalStrategy
from mest_fed.server.modes.in_flight import PendingUpdate
from mest_fed.server.node import Node
from mest_fed.server.round_record import ClientOutcome
from mest_fed.server.strategy import MestStrategy


class SummedRounds(MestStrategy):
    """Synchronous rounds by sums.

    Rounds in which clients mutate, or whose updates are kept or come as slopes, take update by
    update.

    On a grid that cannot sum, as in a deployment, the same is done here, in the same order.
    """

    _aggregator: MaskedAggregator | None = None
    _sums_here = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure, and offer the grid to sum the replies."""
        messages = super().configure_train(server_round, arrays, config, grid)
        self._aggregator = None
        mutate = self.clients_mutate(self.record.round)
        apart = mutate or self.config.server.keeps_updates or self.config.wire.slopes
        if not apart:
            cohort = [sent.node for sent in self._instructions.sent]
            nodes = {
                node.node_id: CohortMember(node.density, node.examples, node.frozen)
                for node in cohort
            }
            offered = {
                density: self.broadcast.state(self.model, density)
                for density in sorted({node.density for node in cohort})
            }
            untrained = {it: self.task.untrained(it) for it in {node.frozen for node in cohort}}
            specs = {it: self.broadcast.spec_of(it) for it in offered}
            epochs = self.config.training.local_epochs
            learned = self.config.task.name, self.config.task.options
            self._aggregator = MaskedAggregator(
                self.clip, offered, nodes, untrained, specs, epochs=epochs, task=learned
            )
            self._sums_here = not isinstance(grid, SummingGrid)
            if isinstance(grid, SummingGrid):
                grid.sum_in_workers(self._aggregator)
        return messages

    def _train_replies(self, replies: Iterable[Message]) -> Iterator[tuple[SentTask, Message]]:
        matched = super()._train_replies(replies)
        if self._aggregator is not None and self._sums_here:
            return _summed(self._aggregator, matched)
        return matched

    def _bytes_of(self, reply: Message) -> int:
        return (
            super()._bytes_of(reply)
            if self._aggregator is None
            else self._aggregator.bytes_of(reply)
        )

    def _accept(self, reply: Message, node: Node, mean: Aggregate, outcome: ClientOutcome) -> None:
        if self._aggregator is None:
            super()._accept(reply, node, mean, outcome)
            return
        counts, density, norm = self._aggregator.read(reply)
        self._clipping.norms.append(norm)
        self._instructions.note_mask(node)
        outcome.note(counts.totals, density)

    def _complete(self, mean: Aggregate) -> None:
        if self._aggregator is None or self._aggregator.total is None:
            return
        assert isinstance(mean, MaskedMean)
        tiers = self._aggregator.total.tiers
        for (density, _), total in sorted(tiers.items(), key=lambda it: it[0]):
            mean.add_sums(self._aggregator.offered[density].masks, total.sums(), total.weight)


def _summed(
    aggregator: MaskedAggregator, replies: Iterable[tuple[SentTask, Message]]
) -> Iterator[tuple[SentTask, Message]]:
    pairwise = PairwiseSum()
    total: Any
    for sent, reply in replies:
        if not reply.has_error():
            partial, reply = aggregator.map(reply)
            pairwise.add(partial)
        yield sent, reply
    total = pairwise.total()
    aggregator.finalize(total)


class FirstReplies(ArrivalStrategy):
    """Synchronous rounds that end with the first ``server.clients_per_round`` good updates.

    ``server.over_selection`` times as many devices are asked. The others train on to their end, and
    are busy until then. What they send is dropped: it counts as ``surplus`` in the round in which
    it arrives, with its bytes, and what it cost its device counts there too.
    """

    def _vacancies(self) -> int:
        server = self.config.server
        wanted = math.ceil(server.clients_per_round * server.over_selection)
        return wanted if self._draws == 0 else 0

    def _is_complete(self) -> bool:
        return self._has_enough() or not any(map(self._is_of_now, self.pending_updates.values()))

    def _has_enough(self) -> bool:
        return self.accepted >= self.config.server.clients_per_round

    def _is_of_now(self, pending: PendingUpdate) -> bool:
        return pending.round == self.record.round

    def _accept(self, reply: Message, node: Node, mean: Aggregate, outcome: ClientOutcome) -> None:
        if self._is_of_now(self.landed) and not self._has_enough():
            super()._accept(reply, node, mean, outcome)
        else:
            outcome.fail(FailureKind.SURPLUS, FailureKind.SURPLUS.label)
            self._note_landed_mask()
