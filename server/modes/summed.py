"""Synchronous rounds whose replies are checked and summed where they are made, if the grid can."""

from collections.abc import Iterable, Iterator

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from mest_fed.folding import PairwiseSum, SummingGrid
from server.aggregate import MaskedMean
from server.masked_fold import MaskedFold
from server.roster import Node
from server.rounds import ClientOutcome
from server.strategy import MestStrategy, SentTask


class SummedRounds(MestStrategy):
    """Synchronous rounds by sums; rounds in which clients mutate take update by update.

    On a grid that cannot sum, as in a deployment, the same is done here, in the same order.
    """

    _fold: MaskedFold | None = None
    _sums_here = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure, and offer the grid to sum the replies."""
        messages = super().configure_train(server_round, arrays, config, grid)
        self._fold = None
        if not self.clients_mutate(self.record.round):
            cohort = [sent.node for sent in self._sent]
            nodes = {node.node_id: (node.density, node.examples) for node in cohort}
            offered = {
                density: self.downlink.state(self.model, density)
                for density in sorted({density for density, _ in nodes.values()})
            }
            epochs = self.config.training.local_epochs
            self._fold = MaskedFold(self.model.spec, offered, nodes, epochs)
            self._sums_here = not isinstance(grid, SummingGrid)
            if isinstance(grid, SummingGrid):
                grid.sum_in_workers(self._fold)
        return messages

    def _train_replies(self, replies: Iterable[Message]) -> Iterator[tuple[SentTask, Message]]:
        matched = super()._train_replies(replies)
        if self._fold is not None and self._sums_here:
            return _summed(self._fold, matched)
        return matched

    def _bytes_of(self, reply: Message) -> int:
        return super()._bytes_of(reply) if self._fold is None else self._fold.bytes_of(reply)

    def _judge(self, reply: Message, node: Node, mean: MaskedMean, outcome: ClientOutcome) -> None:
        if self._fold is None:
            super()._judge(reply, node, mean, outcome)
            return
        counts, density = self._fold.read(reply)
        self._note_mask(node)
        outcome.note(counts.presented, counts.loss_sum, density)

    def _complete(self, mean: MaskedMean) -> None:
        if self._fold is None or self._fold.total is None:
            return
        for density, total in sorted(self._fold.total.tiers.items()):
            mean.add_sums(self._fold.offered[density].masks, total.sums(), total.weight)


def _summed(
    fold: MaskedFold, replies: Iterable[tuple[SentTask, Message]]
) -> Iterator[tuple[SentTask, Message]]:
    pairwise = PairwiseSum()
    for sent, reply in replies:
        if not reply.has_error():
            partial, reply = fold.lift(reply)
            pairwise.add(partial)
        yield sent, reply
    fold.collect(pairwise.total())
