"""Over-selection: more devices are asked than are needed, and the fastest of them are taken.

Bonawitz et al., "Towards Federated Learning at Scale: System Design" (MLSys 2019), section 2.2.
"""

import math
from collections.abc import Iterable

from server.modes.arrivals import ArrivalStrategy
from server.modes.flight import Flight
from server.roster import Node
from server.rounds import ClientOutcome


class FirstReplies(ArrivalStrategy):
    """Synchronous rounds that end with the first ``server.clients_per_round`` good updates.

    ``server.over_selection`` times as many devices are asked. The others train on to their end:
    they are busy until then, and what they send is counted and dropped.
    """

    def _vacancies(self) -> int:
        server = self.config.server
        wanted = math.ceil(server.clients_per_round * server.over_selection)
        return wanted if self._draws == 0 else 0

    def _is_complete(self) -> bool:
        enough = self.accepted >= self.config.server.clients_per_round
        return enough or not any(map(self._wants, self.flights.values()))

    def _wants(self, flight: Flight) -> bool:
        return flight.round == self.record.round

    def _left_out(self) -> Iterable[Flight]:
        return filter(self._wants, self.flights.values())

    def _unanswered(self, node: Node, sent: int) -> ClientOutcome:
        outcome = super()._unanswered(node, sent)
        if node.node_id not in self._lost:
            outcome.status, outcome.reason = "surplus", "enough others were faster"
        return outcome
