"""Over-selection: more devices are asked than are needed, and the fastest of them are taken.

Bonawitz et al., "Towards Federated Learning at Scale: System Design" (MLSys 2019), section 2.2.
"""

import math

from flwr.app import Message

from mest_fed.schema import FailureKind
from server.aggregate import MaskedMean
from server.modes.arrivals import ArrivalStrategy
from server.modes.flight import Flight
from server.roster import Node
from server.rounds import ClientOutcome


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
        return self._has_enough() or not any(map(self._is_of_now, self.flights.values()))

    def _has_enough(self) -> bool:
        return self.accepted >= self.config.server.clients_per_round

    def _is_of_now(self, flight: Flight) -> bool:
        return flight.round == self.record.round

    def _judge(self, reply: Message, node: Node, mean: MaskedMean, outcome: ClientOutcome) -> None:
        if self._is_of_now(self.landed) and not self._has_enough():
            super()._judge(reply, node, mean, outcome)
        else:
            outcome.fail(FailureKind.SURPLUS, "enough others were faster")
            self._note_landed_mask()
