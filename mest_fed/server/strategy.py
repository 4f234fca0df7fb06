"""The MEST strategy: a Flower ``Strategy`` whose model is sparse and whose clients are unlike."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
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
from mest_fed.server import client_evaluation
from mest_fed.server.aggregation.aggregate import Aggregate
from mest_fed.server.aggregation.clipping import NormClipping, RoundClipping
from mest_fed.server.aggregation.masked import PositionCache
from mest_fed.server.aggregation.trimmed import build_aggregate
from mest_fed.server.client_registry import ClientRegistry
from mest_fed.server.first_masks import FirstMasks
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.instructions import Instructions, SentTask
from mest_fed.server.model_broadcast import ModelBroadcast
from mest_fed.server.node import Node
from mest_fed.server.optimizers import build_optimizer
from mest_fed.server.progress import Progress
from mest_fed.server.readiness import Readiness
from mest_fed.server.repeated_update import repeat_update
from mest_fed.server.round_record import ClientOutcome, RoundRecord, log_failed
from mest_fed.server.selection import Selector
from mest_fed.server.selection.cohort import CohortSelection
from mest_fed.server.update_validator import read_counts, read_update
from mest_fed.sparsity.state import SparseState
from mest_fed.task import Task
from mest_fed.wire import encode
from mest_fed.wire.records import content_bytes, read_report, to_record
from mest_fed.wire.values import open_codecs

log = getLogger(__name__)


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
    cohorts : CohortSelection
        Who trains in each round, and what the selector learned of it.
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
        selector: Selector = SELECTORS.build(server.selection)
        self.cohorts = CohortSelection(self.clients, selector, task.config.run.seed)
        self._readiness = Readiness()
        self._instructions = Instructions(self.clients, self.broadcast)
        self._positions = PositionCache(model.spec)
        self.clip = NormClipping(model.spec, server.clip_norm)
        self._clipping = RoundClipping(self.clip, server.clip_median)

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
        if self.keeps_reports:  # of real devices
            self._readiness.wait_after(self.record)
        self.record = RoundRecord(number, self.record.density)
        self.clients.refresh(grid, self.config.server.min_nodes)
        self.broadcast.open_round()
        self.cohorts.open_round(grid)
        if number == 1 and self.task.method.scores_first:
            self.record.scored = FirstMasks(self.task, self.clients).choose(self.model, grid)
            self.broadcast.forget_tiers()
        return self._train_messages(self._cohort())

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
        self.cohorts.learn(self.record.round, self.record.clients)
        metrics = {"density": self.record.density, "trained": self.record.count(TaskStatus.OK)}
        return self.arrays(), MetricRecord(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients to evaluate on their held-out examples, if this round is due."""
        del arrays, config
        number = self.first_round + server_round
        self._instructions.forget()  # training replies have been handled
        if not client_evaluation.is_due(self.config, number):
            return []
        wait = client_evaluation.patience(self.config)
        self.clients.refresh(grid, len(self.clients.nodes), wait)
        nodes = client_evaluation.draw_evaluators(self.clients, self.config, number, self.busy())
        self.broadcast.open_round()
        order = {"round": number}
        return self._instructions.messages(self.model, nodes, order, MessageType.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Collect the clients' metrics: those of all their examples together, and the spread."""
        del server_round
        objective = self.task.objective
        outcomes, found = client_evaluation.collect(self._instructions, replies, objective)
        self.record.evaluations += outcomes
        self.record.client_metrics = client_evaluation.spread_of(found, objective)
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
        """Have the selector choose who trains in this round: see :class:`CohortSelection`."""
        number = self.record.round
        return self.cohorts.choose(number, count, *path, without=without, waits=waits)

    def _train_messages(self, nodes: list[Node]) -> list[Message]:
        """Return the order to train in this round, for each node."""
        number = self.record.round
        order = {"round": number, "mutate": self.clients_mutate(number)}
        return self._instructions.messages(self.model, nodes, order, MessageType.TRAIN)

    def busy(self) -> set[int]:
        """Return the nodes that have no time to evaluate."""
        return set()

    def _train_replies(self, replies: Iterable[Message]) -> Iterator[tuple[SentTask, Message]]:
        """Yield the replies of a round of training, each with its instruction."""
        return self._instructions.matched(replies)

    def _outcomes(self, replies: Iterable[Message], mean: Aggregate) -> Iterator[ClientOutcome]:
        """Add up the updates of a round; yield what became of each node that it asked."""
        for sent, reply in self._train_replies(replies):
            yield self._outcome(reply, sent, mean)
        for sent in self._instructions.rest():
            yield sent.unanswered()

    def _outcome(self, reply: Message, sent: SentTask, mean: Aggregate) -> ClientOutcome:
        """Add a node's update to the mean, if it is acceptable; return what became of the node."""
        node, outcome = sent.node, sent.outcome()
        outcome.examples = node.examples
        if reply.has_error():
            outcome.fail(failure_of_code(reply.error.code), reply.error.reason)
            log_failed(log, f"node {node.label}", outcome)
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
        self._instructions.note_mask(node)
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
