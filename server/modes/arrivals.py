"""Rounds that do not wait for everybody: replies are taken as they arrive."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from mest_fed.schema import FailureKind, TaskStatus
from mest_fed.task import Task
from mest_fed.wire import mask_hash
from server.aggregate import MaskedMean
from server.global_model import GlobalModel
from server.modes.flight import Flight
from server.modes.flight_records import read_flights, write_flights
from server.modes.lives import Lives
from server.modes.mail import Mail
from server.roster import Node
from server.rounds import ClientOutcome
from server.strategy import MestStrategy, SentTask


class ArrivalStrategy(MestStrategy):
    """A strategy that pushes instructions and takes replies in the order in which they arrive.

    A subclass says how many devices begin, when a round ends, and what a reply is worth. A round of
    the logs ends with one step of the server, and has the outcomes of those who answered in it. A
    device has at most one instruction at a time, and answers at most once in a round: asked twice
    it would train the same model on the same batches.

    Replies that arrive at one moment, or while the server evaluates, go into one round.

    Attributes
    ----------
    flights : dict of str to Flight
        Instructions on their way, by the id of their messages.
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
        self.lives = Lives(model.masks)
        self.accepted = 0
        self.opened = 0.0
        self._draws = 0
        self._answered: dict[int, Node] = {}
        self._lost: list[tuple[SentTask, FailureKind]] = []
        self._stopped: list[tuple[Flight, float, int]] = []

    @abstractmethod
    def _vacancies(self) -> int:
        """Return how many more devices may begin to train now."""

    @abstractmethod
    def _is_complete(self) -> bool:
        """Say whether the round needs no more replies."""

    def _ends(self) -> float:
        """Return the time at which the round ends in any case."""
        return math.inf

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a round and push its first instructions; there are none left for Flower to send."""
        self.mail = Mail(grid, self.config.fleet.deadline or math.inf)
        self.opened, self.accepted = self.mail.now, 0
        self._draws, self._answered, self._lost = 0, {}, []
        self._send(list(super().configure_train(server_round, arrays, config, grid)))
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take replies until the round is complete; then step."""
        result = super().aggregate_train(server_round, replies)
        self.lives.follow(self.model.masks, self.record.round)
        return result

    def kept(self) -> tuple[dict[str, Mapping[str, np.ndarray]], Any]:
        """Return what a checkpoint holds of instructions on their way."""
        on_its_way = self.mail.on_its_way() if self.flights else {}
        awaited = [
            (flight, *on_its_way.get(name, (flight.started, 0)))
            for name, flight in self.flights.items()
        ]
        sections, facts = write_flights([*self._stopped, *awaited])
        return {**sections, "born": self.lives.born}, facts

    def restore(self, sections: Mapping[str, Mapping[str, np.ndarray]], facts: Any) -> None:
        """Take instructions back from a checkpoint; they are sent again when a round opens."""
        flights = read_flights(sections, facts, self.model.spec, self.downlink.values)
        self.lives.restore(sections.get("masks", {}), sections.get("born", {}))
        self._stopped = flights

    def forget_devices(self) -> None:
        """Forget the devices, and what was on its way to them."""
        super().forget_devices()
        self._stopped = []

    def _cohort(self) -> list[Node]:
        # A resumed run has just asked its nodes who they are; none of them was busy with that.
        self._send_again()
        return self._draw(self._vacancies())

    def _busy(self) -> set[int]:
        return {flight.node.node_id for flight in self.flights.values()}

    def _draw(self, count: int) -> list[Node]:
        """Draw devices that are idle and have not answered in this round."""
        self._draws += 1
        if count <= 0:
            return []
        nodes = [*(flight.node for flight in self.flights.values()), *self._answered.values()]
        out = {node.node_id for node in nodes}
        out |= self.roster.rivals({node.partition for node in nodes})
        return self._select(count, self._draws, without=out, waits=not self.flights)

    def _send(self, messages: list[Message]) -> None:
        now = self.mail.now
        names = self.mail.send(messages)
        for message, sent, name in zip(messages, self._sent, names, strict=True):
            if not name:
                self._lose(sent, FailureKind.AWAY)
                continue
            node, number = sent.node, self.record.round
            state = self.downlink.state(self.model, node.density)
            self.flights[name] = Flight(node, number, now, message.content, state, sent.bytes_down)

    def _send_again(self) -> None:
        """Send what was on its way when the run stopped."""
        for flight, start, number in self._stopped:
            name = self.mail.send_again(flight.message(), start, number)
            if name is not None:
                self.flights[name] = replace(flight, started=self.mail.now)
        self._stopped = []

    def _arrivals(self) -> Iterator[Message]:
        """Yield replies in order of arrival, and have idle devices begin, until all is there."""
        while not self._is_complete():
            if beginners := self._draw(self._vacancies()):
                self._send(self._instructions(beginners))
            ends = self._ends()
            if not self.flights and ends == math.inf:
                break  # nobody is left to ask
            oldest = min((flight.started for flight in self.flights.values()), default=math.inf)
            until = min(ends, oldest + self.mail.patience)
            replies = self.mail.wait(list(self.flights), until)
            if not replies and until < ends:
                self._give_up(until)
            yield from replies

    def _give_up(self, now: float) -> None:
        """Wait no longer for the replies that are overdue."""
        for name, flight in list(self.flights.items()):
            if flight.started + self.mail.patience <= now:
                del self.flights[name]
                self._lose(SentTask(flight.node, flight.bytes_down), FailureKind.NO_REPLY)

    def _lose(self, sent: SentTask, failure: FailureKind) -> None:
        """Count a node as failed, without a reply, and do not ask it again in this round."""
        self._answered[sent.node.node_id] = sent.node
        self._lost.append((sent, failure))

    def _outcomes(self, replies: Iterable[Message], mean: MaskedMean) -> Iterator[ClientOutcome]:
        del replies  # Flower sent nothing
        for reply in self._arrivals():
            flight = self.flights.pop(reply.metadata.reply_to_message_id, None)
            if flight is not None:  # else it is no longer awaited
                yield self._land(flight, reply, mean)
        for sent, failure in self._lost:
            yield self._unanswered(sent, failure)

    def _land(self, flight: Flight, reply: Message, mean: MaskedMean) -> ClientOutcome:
        self.landed = flight
        self._answered[flight.node.node_id] = flight.node
        outcome = self._outcome(reply, flight.node, flight.bytes_down, mean)
        outcome.staleness = self.record.round - flight.round
        self.accepted += outcome.status is TaskStatus.OK
        del self.landed  # what it was sent may go
        return outcome

    def _note_landed_mask(self) -> None:
        # A node that answered holds the mask of its instruction; its tier may have another by now.
        self.roster.known_mask[self.landed.node.node_id] = mask_hash(self.landed.sent.masks)
