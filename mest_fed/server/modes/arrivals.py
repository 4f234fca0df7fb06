"""Asynchronous rounds: replies are handled as they arrive."""

import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from mest_fed.errors import MestFedError
from mest_fed.schema import FailureKind, TaskStatus
from mest_fed.server.aggregation.aggregate import Aggregate
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.grids import await_reply
from mest_fed.server.instructions import SentTask
from mest_fed.server.modes.in_flight import PendingUpdate, SlotAges, read_pending, write_pending
from mest_fed.server.node import Node
from mest_fed.server.round_record import ClientOutcome
from mest_fed.server.strategy import MestStrategy
from mest_fed.task import Task
from mest_fed.wire import mask_hash


class InFlightReply(Protocol):
    """What a grid with a clock knows of an instruction whose reply has not arrived."""

    message_id: str
    start: float
    number: int


@runtime_checkable
class VirtualGrid(Protocol):
    """What a grid with a clock of its own offers beside Flower's methods.

    Its ``pull_messages`` lets time pass until the first of the replies arrives, if none has.

    Attributes
    ----------
    now : float
        Virtual seconds since the start of the run.
    """

    now: float

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies, as soon as there are any."""

    def wait_until(self, now: float) -> None:
        """Let time pass."""

    def push_again(self, message: Message, start: float, number: int) -> str:
        """Send what was on its way when a run was stopped, as it was sent then; return its id."""

    def in_flight(self) -> Sequence[InFlightReply]:
        """Return what is on its way."""


class AsyncMessenger:
    """Messages of a strategy that waits for no one in particular.

    Parameters
    ----------
    grid : Grid
        Any. One that is a :class:`VirtualGrid` says what time it is; else it is real.
    deadline : float
        Real seconds after which a reply is too late. In virtual time the grid sees to that.

    Attributes
    ----------
    patience : float
        Seconds after which a reply no longer comes; a simulated device always answers.
    """

    def __init__(self, grid: Grid, deadline: float = math.inf) -> None:
        self._grid = grid
        self._virtual = grid if isinstance(grid, VirtualGrid) else None
        self.patience = deadline if self._virtual is None else math.inf

    @property
    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() if self._virtual is None else self._virtual.now

    def send(self, messages: Sequence[Message]) -> list[str | None]:
        """Send messages; return their ids, None (or empty) for those that could not be sent."""
        names: list[str | None] = list(self._grid.push_messages(messages))
        return names + [None] * (len(messages) - len(names))

    def send_again(self, message: Message, start: float, number: int) -> str | None:
        """Send again what :meth:`in_flight` returned; where time is real it begins anew."""
        if self._virtual is None:
            return self.send([message])[0]
        return self._virtual.push_again(message, start, number)

    def in_flight(self) -> dict[str, tuple[float, int]]:
        """Return the start and the number of each message whose reply has not arrived.

        Nothing where time is real: that does not stop with a run.
        """
        flying = () if self._virtual is None else self._virtual.in_flight()
        return {pending.message_id: (pending.start, pending.number) for pending in flying}

    def wait(self, names: Sequence[str], until: float = math.inf) -> list[Message]:
        """Return replies to these messages as soon as there are any, or nothing at ``until``.

        Virtual time goes on to ``until``, if that is finite, before anything is returned.
        """
        if self._virtual is not None:
            if until < math.inf:
                self._virtual.wait_until(until)
                if self.now < until:
                    raise MestFedError("a grid whose devices take no time cannot wait for some")
                flying = self.in_flight()
                names = [name for name in names if name not in flying]
            return list(self._virtual.pull_messages(names)) if names else []
        while names or self.now < until < math.inf:
            replies = list(self._grid.pull_messages(names)) if names else []
            if replies or self.now >= until:
                return replies
            await_reply(self._grid, until - self.now)
        return []


class ArrivalStrategy(MestStrategy):
    """A strategy that pushes instructions and takes replies in the order in which they arrive.

    A subclass says how many devices begin, when a round ends, and what a reply is worth. A round of
    the logs ends with one step of the server, and has the outcomes of those who answered in it. A
    device has at most one instruction at a time, and answers at most once in a round: asked twice
    it would train the same model on the same batches.

    Replies that arrive at one moment, or while the server evaluates, go into one round.

    Attributes
    ----------
    pending_updates : dict of str to PendingUpdate
        Instructions on their way, by the id of their messages.
    ages : SlotAges
        Round since which each slot has been active.
    accepted : int
        Updates that the round in progress has taken.
    landed : PendingUpdate
        The instruction whose reply is being taken.
    opened : float
        When the round in progress began.
    """

    messenger: AsyncMessenger
    landed: PendingUpdate

    def __init__(self, task: Task, model: GlobalModel) -> None:
        super().__init__(task, model)
        self.pending_updates: dict[str, PendingUpdate] = {}
        self.ages = SlotAges(model.masks)
        self.accepted = 0
        self.opened = 0.0
        self._draws = 0
        self._answered: dict[int, Node] = {}
        self._lost: list[tuple[SentTask, FailureKind]] = []
        self._stopped: list[tuple[PendingUpdate, float, int]] = []

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
        self.messenger = AsyncMessenger(grid, self.config.fleet.deadline or math.inf)
        self.opened, self.accepted = self.messenger.now, 0
        self._draws, self._answered, self._lost = 0, {}, []
        self._send(list(super().configure_train(server_round, arrays, config, grid)))
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take replies until the round is complete; then step."""
        result = super().aggregate_train(server_round, replies)
        self.ages.follow(self.model.masks, self.record.round)
        return result

    def hold_target(self) -> bool:
        """Cut the model to the target density; say if it was above."""
        changed = super().hold_target()
        self.ages.follow(self.model.masks, self.record.round)
        return changed

    def kept(self) -> tuple[dict[str, Mapping[str, np.ndarray]], Any]:
        """Return what a checkpoint holds of instructions on their way."""
        in_flight = self.messenger.in_flight() if self.pending_updates else {}
        awaited = [
            (pending, *in_flight.get(name, (pending.started, 0)))
            for name, pending in self.pending_updates.items()
        ]
        sections, facts = write_pending([*self._stopped, *awaited])
        return {**sections, "born": self.ages.grown_at}, facts

    def restore(self, sections: Mapping[str, Mapping[str, np.ndarray]], facts: Any) -> None:
        """Take instructions back from a checkpoint; they are sent again when a round opens."""
        pending_updates = read_pending(sections, facts, self.model.spec, self.broadcast.values)
        masks = dict(sections.get("masks", {}))
        self.ages.restore(masks, sections.get("born", {}))
        self._stopped = pending_updates

    def forget_devices(self) -> None:
        """Forget the devices, and what was on its way to them."""
        super().forget_devices()
        self._stopped = []

    def _cohort(self) -> list[Node]:
        # A resumed run has just asked its nodes who they are; none of them was busy with that.
        self._send_again()
        return self._draw(self._vacancies())

    def busy(self) -> set[int]:
        """Return the nodes that train."""
        return {pending.node.node_id for pending in self.pending_updates.values()}

    def _draw(self, count: int) -> list[Node]:
        """Draw devices that are idle and have not answered in this round."""
        self._draws += 1
        if count <= 0:
            return []
        nodes = [
            *(pending.node for pending in self.pending_updates.values()),
            *self._answered.values(),
        ]
        out = {node.node_id for node in nodes}
        out |= self.clients.rivals({node.partition for node in nodes})
        return self._select(count, self._draws, without=out, waits=not self.pending_updates)

    def _send(self, messages: list[Message]) -> None:
        now = self.messenger.now
        names = self.messenger.send(messages)
        for message, sent, name in zip(messages, self._instructions.sent, names, strict=True):
            if not name:
                self._lose(sent, FailureKind.AWAY)
                continue
            node, number = sent.node, self.record.round
            state = self.broadcast.state(self.model, node.density)
            self.pending_updates[name] = PendingUpdate(
                node, number, now, message.content, state, sent.bytes_down
            )

    def _send_again(self) -> None:
        """Send what was on its way when the run stopped."""
        for pending, start, number in self._stopped:
            name = self.messenger.send_again(pending.message(), start, number)
            if name is not None:
                self.pending_updates[name] = replace(pending, started=self.messenger.now)
        self._stopped = []

    def _arrivals(self) -> Iterator[Message]:
        """Yield replies in order of arrival, and have idle devices begin, until all is there."""
        while not self._is_complete():
            if beginners := self._draw(self._vacancies()):
                self._send(self._train_messages(beginners))
            ends = self._ends()
            if not self.pending_updates and ends == math.inf:
                break  # no node is left to ask
            oldest = min(
                (pending.started for pending in self.pending_updates.values()), default=math.inf
            )
            until = min(ends, oldest + self.messenger.patience)
            replies = self.messenger.wait(list(self.pending_updates), until)
            if not replies and until < ends:
                self._give_up(until)
            yield from replies

    def _give_up(self, now: float) -> None:
        """Wait no longer for the replies that are overdue."""
        for name, pending in list(self.pending_updates.items()):
            if pending.started + self.messenger.patience <= now:
                del self.pending_updates[name]
                self._lose(SentTask(pending.node, pending.bytes_down), FailureKind.NO_REPLY)

    def _lose(self, sent: SentTask, failure: FailureKind) -> None:
        """Count a node as failed, without a reply, and do not ask it again in this round."""
        self._answered[sent.node.node_id] = sent.node
        self._lost.append((sent, failure))

    def _outcomes(self, replies: Iterable[Message], mean: Aggregate) -> Iterator[ClientOutcome]:
        del replies  # Flower sent nothing
        for reply in self._arrivals():
            pending = self.pending_updates.pop(reply.metadata.reply_to_message_id, None)
            if pending is not None:  # else it is no longer awaited
                yield self._land(pending, reply, mean)
        for sent, failure in self._lost:
            yield sent.unanswered(failure)

    def _land(self, pending: PendingUpdate, reply: Message, mean: Aggregate) -> ClientOutcome:
        self.landed = pending
        self._answered[pending.node.node_id] = pending.node
        outcome = self._outcome(reply, SentTask(pending.node, pending.bytes_down), mean)
        outcome.staleness = self.record.round - pending.round
        self.accepted += outcome.status is TaskStatus.OK
        del self.landed  # what it was sent may go
        return outcome

    def _note_landed_mask(self) -> None:
        # A node that answered holds the mask of its instruction; its tier may have another by now.
        self.clients.known_mask[self.landed.node.node_id] = mask_hash(self.landed.sent.masks)
