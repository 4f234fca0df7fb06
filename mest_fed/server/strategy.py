"""The MEST strategy: a Flower ``Strategy`` whose model is sparse and whose clients are unlike."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from mest_fed.catalogue import SELECTORS, MutationPlace
from mest_fed.errors import WireError
from mest_fed.memory import DENSITY_STEPS
from mest_fed.schema import LOSS, FailureKind, TaskStatus, failure_of_code
from mest_fed.server.aggregation.aggregate import Aggregate
from mest_fed.server.aggregation.clipping import NormClipping, RoundClipping
from mest_fed.server.aggregation.masked import PositionCache
from mest_fed.server.aggregation.trimmed import build_aggregate
from mest_fed.server.client_registry import ClientRegistry, Node
from mest_fed.server.exchange import Awaited
from mest_fed.server.first_masks import FirstMasks
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.model_broadcast import ModelBroadcast
from mest_fed.server.optimizers import build_optimizer
from mest_fed.server.progress import Progress
from mest_fed.server.repeated_update import repeat_update
from mest_fed.server.round_record import ClientOutcome, RoundRecord, spread_of
from mest_fed.server.selection import (
    AvailabilityInfo,
    ClientFeedback,
    SelectionRequest,
    Selector,
)
from mest_fed.server.update_validator import read_counts, read_update
from mest_fed.sparsity.state import SparseState
from mest_fed.task import Task
from mest_fed.training import Metrics
from mest_fed.wire import encode
from mest_fed.wire.records import content_bytes, read_report, to_record
from mest_fed.wire.values import open_codecs

log = getLogger(__name__)


@dataclass(frozen=True)
class SentTask:
    """An instruction that was sent.

    Parameters
    ----------
    node : Node
        To whom.
    bytes_down : int
        Bytes of its content.
    """

    node: Node
    bytes_down: int


#: How long an evaluation waits for a device that is started anew, without a deadline.
_BACK_SECONDS = 60.0


class MestStrategy(Strategy):
    """Federated sparse training with masks nested by device tier.

    Parameters
    ----------
    task : Task
        The run's task.
    model : GlobalModel
        Where training starts.

    Attributes
    ----------
    first_round : int
        Rounds done before :meth:`start`, when a run is resumed; Flower counts from 1 each time.
    keeps_reports : bool
        Whether rounds' records hold what devices say of themselves, as is wanted of real ones.
    record : RoundRecord
        Of the round in progress, or the last one.
    progress : Progress
        What the evaluations came to: the best round, and whether the run stops.
    best : SparseState or None
        The model of the best round, where the run keeps that.
    final_metrics : dict of str to float
        Of the best model once it is in place, where it was evaluated again.
    """

    def __init__(self, task: Task, model: GlobalModel) -> None:
        self.task = task
        self.config = task.config
        self.model = model
        sparsity, server = task.config.sparsity, task.config.server
        self.optimizer = build_optimizer(
            server.optimizer,
            learning_rate=server.learning_rate,
            momentum=server.momentum,
            beta2=server.beta2,
            tau=server.tau,
        )
        self.broadcast = ModelBroadcast(
            model.spec,
            sparsity.densities,
            task.config.wire.download,
            lambda density: task.at_width(density).spec,
        )
        steps = DENSITY_STEPS if task.has_tiers else (1.0,)
        self.clients = ClientRegistry(task.density * step for step in steps)
        self.first_round = 0
        self.keeps_reports = False
        self.record = RoundRecord(0, model.state().density(model.spec))
        open_codecs(task.config.wire.download, task.config.wire.upload)
        self.progress = Progress.of(task.objective, server.stop_when)
        self.best: SparseState | None = None
        self.final_metrics: dict[str, float] = {}
        self.selector: Selector = SELECTORS.build(server.selection)
        self._availability: AvailabilityInfo | None = None
        self._positions = PositionCache(model.spec)
        self.clip = NormClipping(model.spec, server.clip_norm)
        self._clipping = RoundClipping(self.clip, server.clip_median)
        self._sent: list[SentTask] = []
        self._awaited = Awaited[SentTask]()

    def summary(self) -> None:
        """Log what the strategy is."""
        sparsity = self.config.sparsity
        log.info(
            "%s, %s mutation, %s at density %g",
            sparsity.method,
            sparsity.mutation,
            sparsity.scheme,
            self.task.density,
        )

    def clients_mutate(self, server_round: int) -> bool:
        """Say whether clients mutate in a round (from 1)."""
        return self.config.sparsity.mutation == MutationPlace.CLIENT and self.task.interval.due(
            server_round - 1
        )

    def arrays(self) -> ArrayRecord:
        """Return the global model as Flower's result holds it."""
        payload, _ = encode(self.model.state(), self.model.spec)
        return to_record(payload).array_records["arrays"]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort and send each node its tier of the model."""
        del arrays, config  # the model is self.model
        number = self.first_round + server_round
        self.record = RoundRecord(number, self.record.density)
        self.clients.refresh(grid, self.config.server.min_nodes)
        self.broadcast.open_round()
        self._availability = grid if isinstance(grid, AvailabilityInfo) else None
        if number == 1 and self.task.method.scores_first:
            self.record.scored = FirstMasks(self.task, self.clients).choose(self.model, grid)
            self.broadcast.forget_tiers()
        return self._instructions(self._cohort())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what is acceptable, reply by reply, then mutate if the server does."""
        number = self.first_round + server_round
        mean = build_aggregate(self.config.server, self.model.spec, self._positions)
        self._clipping = RoundClipping(self.clip, self.config.server.clip_median)
        losses, counted = 0.0, 0.0
        outcomes = []
        for outcome in self._outcomes(replies, mean):
            outcomes.append(outcome)
            if outcome.train_loss is not None:
                losses += outcome.train_loss * outcome.counted
                counted += outcome.counted
        self.record.clients = sorted(outcomes, key=lambda outcome: outcome.partition)
        self.record.train_loss = losses / counted if counted else None
        self._complete(mean)
        self._clipping.complete(mean)
        self.model.apply_update(mean, self.optimizer)
        self._update_masks(number)
        self.record.density = self.model.state().density(self.model.spec)
        self._learn()
        metrics = {"density": self.record.density, "trained": self.record.count(TaskStatus.OK)}
        return self.arrays(), MetricRecord(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients to evaluate on their held-out examples, if this round is due.

        A device that is started anew just then is waited for, up to ``fleet.deadline``, or a while
        where there is none: without it, what the run comes to would be of other examples.
        """
        del arrays, config
        number, server = self.first_round + server_round, self.config.server
        self._awaited = Awaited()  # training replies have been handled
        every = server.evaluate_clients_every
        last = number == self.config.run.rounds
        if every == 0 or not (number % every == 0 or last):
            return []
        path = (self.config.run.seed, number, "evaluation")
        patience = self.config.fleet.deadline or _BACK_SECONDS
        self.clients.refresh(grid, len(self.clients.nodes), patience)
        nodes = self.clients.sample(server.evaluate_clients, *path, without=self.busy())
        self.broadcast.open_round()
        order = {"round": number}
        able = [node for node in nodes if node.held_out > 0]
        return self._messages(able, order, MessageType.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Collect the clients' metrics: those of all their examples together, and the spread."""
        del server_round
        objective = self.task.objective
        found: list[Metrics] = []
        for sent, reply in self._matched(replies):
            node = sent.node
            outcome = self._asked(sent)
            self.record.evaluations.append(outcome)
            if reply.has_error():
                outcome.fail(failure_of_code(reply.error.code), reply.error.reason)
                log.warning("evaluation on node %s failed: %s", node.label, outcome.reason)
                continue
            outcome.bytes_up = content_bytes(reply.content)
            try:
                totals = read_counts(reply, node.held_out, objective=objective).totals
                if totals.examples != node.held_out:
                    raise WireError(f"{totals.examples} presented of {node.held_out} held out")
            except WireError as error:
                log.warning("evaluation of node %s was rejected: %s", node.label, error)
                continue
            self._note_mask(node)
            outcome.note_score(totals, objective)
            found.append(totals)
        for sent in self._awaited.rest():
            self.record.evaluations.append(self._unanswered(sent))
            log.warning("evaluation on node %s failed: no reply", sent.node.label)
        self.record.client_metrics = spread_of(found, objective)
        self.record.diverged = bool(found) and LOSS.name not in self.record.client_metrics
        primary = self.record.client_metrics.get(objective.primary.name)
        return None if primary is None else MetricRecord(asdict(primary))

    def note_evaluation(self) -> None:
        """Take note of the round's evaluation: the best model so far, and the end of the run."""
        number = self.record.round
        if self.progress.see(number, self.record.judged) and self.config.server.keep == "best":
            self.best = self.model.state()

    def hold_target(self) -> bool:
        """Cut the model to the target density, as after the last round; say if it was above."""
        before = self.record.density
        self.model.cut_to_target(self.optimizer)
        self.broadcast.forget_tiers()
        self.record.density = self.model.state().density(self.model.spec)
        return self.record.density != before

    def take_best(self) -> bool:
        """Put the best round's model in the last one's place, where the run keeps it."""
        if self.best is None:
            return False
        self.model.put(self.best)
        self.hold_target()
        return True

    def kept(self) -> tuple[dict[str, Mapping[str, np.ndarray]], Any]:
        """Return what a checkpoint holds beside model, optimizer and masks: arrays and facts."""
        return {}, None

    def restore(self, sections: Mapping[str, Mapping[str, np.ndarray]], facts: Any) -> None:
        """Take back what :meth:`kept` gave.

        Raises
        ------
        KeyError, TypeError, ValueError, WireError
            If it is not of this run.
        """

    def forget_devices(self) -> None:
        """Forget the devices: to those of a new run that resumes another, the server is new."""
        self.clients.forget()

    def _cohort(self) -> list[Node]:
        """Choose who begins to train when the round begins."""
        return self._select(self.config.server.clients_per_round)

    def _select(
        self, count: int, *path: int, without: Collection[int] = (), waits: bool = True
    ) -> list[Node]:
        """Have the selector choose who trains.

        Parameters
        ----------
        count : int
            How many are wanted.
        *path : int
            Which selection of the round it is, if there are several.
        without : collection of int
            Ids of nodes that are not to be chosen.
        waits : bool
            Whether time may pass until a node is available.
        """
        number = self.record.round
        asked = SelectionRequest(
            self.clients.in_order(),
            count,
            number,
            (self.config.run.seed, number, "cohort", *path),
            availability=self._availability,
            waits=waits,
        )

        def draw(wanted: int, out: Collection[int]) -> list[int]:
            request = replace(asked, count=wanted, without=out)
            return request.checked(self.selector.select(request))

        return self.clients.gather(count, draw, without)

    def _learn(self) -> None:
        """Tell the selector what became of the round's clients."""
        seconds = {} if self._availability is None else self._availability.train_seconds()
        self.selector.learn(
            self.record.round,
            [
                ClientFeedback(who.node_id, who.examples, who.train_loss, seconds.get(who.node_id))
                for who in self.record.clients
            ],
        )

    def _instructions(self, nodes: list[Node]) -> list[Message]:
        """Return the order to train in this round, for each node."""
        number = self.record.round
        order = {"round": number, "mutate": self.clients_mutate(number)}
        return self._messages(nodes, order, MessageType.TRAIN)

    def busy(self) -> set[int]:
        """Return the nodes that have no time to evaluate."""
        return set()

    def _unanswered(
        self, sent: SentTask, failure: FailureKind = FailureKind.NO_REPLY
    ) -> ClientOutcome:
        """Return what became of a node whose reply the round did not take."""
        outcome = self._asked(sent)
        outcome.fail(failure, "no reply")
        return outcome

    def _asked(self, sent: SentTask) -> ClientOutcome:
        """Return the outcome of a node, of which only what it was sent is known yet."""
        node = sent.node
        return ClientOutcome(node.node_id, node.partition, node.device, bytes_down=sent.bytes_down)

    def _messages(
        self, nodes: list[Node], order: Mapping[str, int | bool], message_type: str
    ) -> list[Message]:
        messages = []
        self._sent = []
        for node in nodes:
            # Until it answers, the server does not know which mask set it holds.
            known = self.clients.known_mask.pop(node.node_id, b"")
            content = self.broadcast.content(self.model, node.density, known, order)
            size = content_bytes(content)
            self._sent.append(SentTask(node, size))
            messages.append(
                Message(content=content, message_type=message_type, dst_node_id=node.node_id)
            )
        self._awaited = Awaited(zip(messages, self._sent, strict=True))
        return messages

    def _matched(self, replies: Iterable[Message]) -> Iterator[tuple[SentTask, Message]]:
        """Yield each reply with the instruction that it answers; drop others and repetitions."""
        for reply in replies:
            sent = self._awaited.take(reply)
            if sent is None:
                log.warning("a reply was dropped: it answers no instruction that is awaited")
            else:
                yield sent, reply

    def _train_replies(self, replies: Iterable[Message]) -> Iterator[tuple[SentTask, Message]]:
        """Yield the replies of a round of training, each with its instruction."""
        return self._matched(replies)

    def _outcomes(self, replies: Iterable[Message], mean: Aggregate) -> Iterator[ClientOutcome]:
        """Add up the updates of a round; yield what became of each node that it asked."""
        for sent, reply in self._train_replies(replies):
            yield self._outcome(reply, sent, mean)
        for sent in self._awaited.rest():
            yield self._unanswered(sent)

    def _outcome(self, reply: Message, sent: SentTask, mean: Aggregate) -> ClientOutcome:
        """Add a node's update to the mean, if it is acceptable; return what became of the node."""
        node, outcome = sent.node, self._asked(sent)
        outcome.examples = node.examples
        if reply.has_error():
            outcome.fail(failure_of_code(reply.error.code), reply.error.reason)
            log.warning("node %s failed: %s", node.label, outcome.reason)
            return outcome
        outcome.bytes_up = self._bytes_of(reply)
        if self.keeps_reports:
            outcome.reported = read_report(reply.content)
        try:
            self._accept(reply, node, mean, outcome)
        except WireError as error:
            outcome.fail(FailureKind.UPDATE_REJECTED, str(error))
            log.warning("the update of node %s was rejected: %s", node.label, error)
        return outcome

    def _bytes_of(self, reply: Message) -> int:
        return content_bytes(reply.content)

    def _complete(self, mean: Aggregate) -> None:
        """Add to the mean what did not come reply by reply."""

    def _accept(self, reply: Message, node: Node, mean: Aggregate, outcome: ClientOutcome) -> None:
        """Add an update to the mean and note what it says; WireError if it is not acceptable."""
        epochs = self.config.training.local_epochs
        counts = read_counts(reply, node.examples, epochs, self.task.objective)
        offered = self.broadcast.state(self.model, node.density)
        mutated = self.clients_mutate(self.record.round)
        spec = self.broadcast.spec_of(node.density)
        untrained = self.task.untrained(node.frozen)
        state = self._read(
            reply,
            node,
            offered,
            self.record.round,
            mask_may_change=mutated,
            sent_hash=self.broadcast.tier_hash(node.density),
        )
        masks = offered.masks if mutated else None
        self._clipping.add(mean, state, offered, counts.examples, masks, untrained=untrained)
        self._note_mask(node)
        outcome.note(counts.totals, state.density(spec))

    def _read(
        self, reply: Message, node: Node, sent: SparseState, number: int, **how: Any
    ) -> SparseState:
        """Return what a node's model became, of what it was sent in a round.

        ``how`` is for :func:`read_update`; WireError if the update is not acceptable.
        """
        if self.config.wire.slopes:
            return repeat_update(reply, self.task, node, sent, number)
        spec, untrained = self.broadcast.spec_of(node.density), self.task.untrained(node.frozen)
        return read_update(reply, spec, sent, frozen=untrained, **how)

    def _note_mask(self, node: Node) -> None:
        # A node that answered has decoded, and kept, the mask set that it was sent.
        self.clients.known_mask[node.node_id] = self.broadcast.tier_hash(node.density)

    def _update_masks(self, number: int) -> None:
        """Mutate, or adopt what clients mutated; at the end of the run hold the target."""
        sparsity, interval = self.config.sparsity, self.task.interval
        if self.clients_mutate(number):
            self.model.adopt_masks(self.optimizer)
        elif number == self.config.run.rounds:
            self.model.cut_to_target(self.optimizer)
        elif sparsity.mutation == MutationPlace.SERVER and interval.due(number):
            path = (self.config.run.seed, "growth", number)
            progress = interval.progress(number)
            self.model.mutate(self.task.method, progress, self.optimizer, path)
        else:
            return
        self.broadcast.forget_tiers()
