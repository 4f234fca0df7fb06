"""Asynchronous and semi-synchronous rounds: updates may be older than the model they go into."""

from flwr.app import Message

from mest_fed.errors import WireError
from server.aggregate import MaskedMean
from server.modes.arrivals import ArrivalStrategy
from server.modes.staleness import discount, rebase
from server.roster import Node
from server.rounds import ClientOutcome
from server.uplink import read_counts, read_update


class Buffered(ArrivalStrategy):
    """FedBuff: a step when ``server.buffer`` good updates have arrived (see ``staleness.py``).

    ``server.concurrency`` devices train at a time: who has answered is replaced at once. What a
    mutation of the server killed since an update's instruction is left out of the update; what it
    grew since was not offered to that client, and is not touched.

    The paper's divisor is the number of updates. Here it is, for each weight, the number of those
    that were offered it, or the sum of their examples (``server.weighting``). Examples are the
    default, since a buffer of fresh updates then is a synchronous round.
    """

    def _vacancies(self) -> int:
        return self.config.server.concurrency - len(self.flights)

    def _is_complete(self) -> bool:
        return self.accepted >= self.config.server.buffer

    def _judge(self, reply: Message, node: Node, mean: MaskedMean, outcome: ClientOutcome) -> None:
        flight, server, spec = self.landed, self.config.server, self.model.spec
        counts = read_counts(reply, node.examples, self.config.training.local_epochs)
        state = read_update(reply, spec, flight.sent, mask_may_change=False)
        self._note_landed_mask()
        staleness = self.record.round - flight.round
        if staleness > server.max_staleness:
            raise WireError(
                f"{staleness} rounds old; server.max_staleness = {server.max_staleness}"
            )
        rows = {
            group: self.lives.still(group, slots, flight.round)
            for group, slots in flight.sent.masks.items()
        }
        share = discount(staleness, server.staleness_exponent)
        weight = counts.examples if server.weighting == "examples" else 1
        mean.add(rebase(state, flight.sent, rows, self.model, share), weight)
        outcome.note(counts.presented, counts.loss_sum, state.density(spec))


class SemiSynchronous(Buffered):
    """A step every ``server.period`` seconds, with what has arrived; then idle devices are asked.

    At each step as many begin as ``server.concurrency`` has room for.
    """

    def _vacancies(self) -> int:
        return super()._vacancies() if self._draws == 0 else 0

    def _is_complete(self) -> bool:
        return self.mail.now >= self._ends()

    def _ends(self) -> float:
        return self.opened + self.config.server.period
