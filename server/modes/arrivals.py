"""Rounds that do not wait for everybody: replies are taken as they arrive."""

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from mest_fed.task import Task
from mest_fed.wire import mask_hash
from mest_fed.wire.size import content_bytes
from server.aggregate import MaskedMean
from server.global_model import GlobalModel
from server.modes.flight import Flight
from server.modes.flight_records import read_flights, write_flights
from server.modes.lives import Lives
from server.modes.mail import Mail
from server.roster import Node
from server.rounds import ClientOutcome
from server.strategy import MestStrategy


class ArrivalStrategy(MestStrategy):
    """A strategy that pushes instructions and takes replies in the order in which they arrive.

    A subclass says whom to ask, when a round ends, and which replies it still wants. A round of the
    logs ends with one step of the server. A device has at most one instruction at a time, and gives
    at most one update to a round: asked twice in one round it would train the same model on the
    same batches.

    Attributes
    ----------
    flights : dict of str to Flight
        Instructions on their way, by the id of their messages.
    arrived : deque of Message
        Replies that were fetched and not taken yet.
    lives : Lives
        Since when each live slot has lived.
    accepted : int
        Updates that the round in progress has taken.
    landed : Flight
        The instruction whose reply is being taken.
    opened : float
        When the round in progress began.
    """

    mail: Mail
    landed: Flight

    def __init__(self, task: Task, model: GlobalModel) -> None:
        super().__init__(task, model)
        self.flights: dict[str, Flight] = {}
        self.arrived: deque[Message] = deque()
        self.lives = Lives(model.masks)
        self.accepted = 0
        self.opened = 0.0
        self._answered: set[int] = set()
        self._draws = 0
        self._lost: dict[int, tuple[Node, int]] = {}
        self._stopped: tuple[list[Flight], list[int]] = ([], [])

    @abstractmethod
    def _vacancies(self) -> int:
        """Return how many more devices may begin to train now."""

    @abstractmethod
    def _is_complete(self) -> bool:
        """Say whether the round needs no more replies."""

    def _ends(self) -> float:
        """Return the time at which the round ends in any case."""
        return math.inf

    def _wants(self, flight: Flight) -> bool:
        """Say whether the reply to an instruction counts in this round."""
        del flight
        return True

    def _left_out(self) -> Iterable[Flight]:
        """Return the instructions on their way with which this round has done."""
        return ()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a round and push its first instructions; there are none left for Flower to send."""
        self.mail = Mail(grid)
        self._send_again()
        self.opened, self.accepted = self.mail.now, 0
        self._answered, self._draws, self._lost = set(), 0, {}
        self._send(list(super().configure_train(server_round, arrays, config, grid)))
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take replies until the round is complete; then step."""
        del replies  # Flower sent nothing
        result = super().aggregate_train(server_round, self._arrivals())
        self.lives.follow(self.model.masks, self.record.round)
        return result

    def kept(self) -> tuple[dict[str, Mapping[str, np.ndarray]], Any]:
        """Return what a checkpoint holds of instructions on their way."""
        sections, facts = write_flights(list(self.flights.values()))
        place = {name: index for index, name in enumerate(self.flights)}
        arrived = [place[reply.metadata.reply_to_message_id] for reply in self.arrived]
        return {**sections, "born": self.lives.born}, {"flights": facts, "arrived": arrived}

    def restore(self, sections: Mapping[str, Mapping[str, np.ndarray]], facts: Any) -> None:
        """Take instructions back from a checkpoint; they are sent again when a round opens."""
        spec, values = self.model.spec, self.downlink.values
        flights = read_flights(sections, facts["flights"], spec, values)
        arrived = [int(place) for place in facts["arrived"]]
        if any(not 0 <= place < len(flights) for place in arrived):
            raise ValueError("a reply has no instruction")
        self.lives.restore(sections.get("masks", {}), sections.get("born", {}))
        self._stopped = (flights, arrived)

    def _cohort(self) -> list[Node]:
        return self._draw(self._vacancies())

    def _busy(self) -> set[int]:
        return {flight.node.node_id for flight in self.flights.values()}

    def _draw(self, count: int) -> list[Node]:
        """Draw devices that are idle and have not answered in this round."""
        if count <= 0:
            return []
        self._draws += 1
        path = (self.config.run.seed, self.record.round, "cohort", self._draws)
        return self.roster.sample(count, *path, without=self._busy() | self._answered)

    def _send(self, messages: list[Message]) -> None:
        now = self.mail.now
        for message, name in zip(messages, self.mail.send(messages), strict=True):
            node, size = self._sent[message.metadata.dst_node_id]
            if name is None:
                self._lost[node.node_id] = (node, size)
                continue
            state = self.downlink.state(self.model, node.density)
            number = self.mail.number_of(name)
            self.flights[name] = Flight(
                node, self.record.round, now, message.content, state, size, number
            )

    def _send_again(self) -> None:
        """Send what was on its way when the run stopped; fetch what had arrived by then."""
        (flights, arrived), self._stopped = self._stopped, ([], [])
        names = [self.mail.send_again(f.message(), f.started, f.number) for f in flights]
        self.flights |= {name: f for name, f in zip(names, flights, strict=True) if name}
        fetched = [name for name in (names[place] for place in arrived) if name]
        if fetched:
            replies = self.mail.wait(fetched, self.mail.now)
            by_name = {reply.metadata.reply_to_message_id: reply for reply in replies}
            self.arrived = deque(by_name[name] for name in fetched if name in by_name)

    def _arrivals(self) -> Iterator[Message]:
        """Yield replies in order of arrival, and have idle devices begin, until all is there."""
        while not self._is_complete():
            if not self.arrived and not self._fetch():
                break
            while self.arrived and not self._is_complete():
                reply = self.arrived.popleft()
                if self._wants(self.flights[reply.metadata.reply_to_message_id]):
                    yield reply
                else:
                    self._dismiss(reply)
        left_out = {f.node.node_id: (f.node, f.bytes_down) for f in self._left_out()}
        self._sent = {**self._lost, **left_out}

    def _fetch(self) -> bool:
        """Fill vacancies, then wait; return whether another reply may come."""
        if beginners := self._draw(self._vacancies()):
            self._send(self._instructions(beginners))
        ends = self._ends()
        if not self.flights and ends == math.inf:
            return False
        oldest = min((flight.started for flight in self.flights.values()), default=math.inf)
        until = min(ends, oldest + self.mail.patience)
        self.arrived.extend(self.mail.wait(list(self.flights), until))
        if not self.arrived and until < ends:
            self._give_up(until)
        return True

    def _give_up(self, now: float) -> None:
        """Wait no longer for the replies that are overdue."""
        for name, flight in list(self.flights.items()):
            if flight.started + self.mail.patience <= now:
                del self.flights[name]
                self._answered.add(flight.node.node_id)
                self._lost[flight.node.node_id] = (flight.node, flight.bytes_down)

    def _take(self, reply: Message, mean: MaskedMean) -> ClientOutcome:
        flight = self.landed = self.flights.pop(reply.metadata.reply_to_message_id)
        self._answered.add(flight.node.node_id)
        outcome = self._outcome(reply, flight.node, flight.bytes_down, mean)
        outcome.staleness = self.record.round - flight.round
        self.accepted += outcome.status == "ok"
        return outcome

    def _dismiss(self, reply: Message) -> None:
        """Take a reply that nobody wants any more off the way."""
        flight = self.flights.pop(reply.metadata.reply_to_message_id)
        if not reply.has_error():
            self.record.bytes_up += content_bytes(reply.content)
            self._note_mask_of(flight)

    def _note_mask_of(self, flight: Flight) -> None:
        # A node that answered holds the mask of its instruction; its tier may have another by now.
        self.roster.known_mask[flight.node.node_id] = mask_hash(flight.sent.masks)
