"""The first masks of a run, where clients choose them: by scores of the dense initial model."""

from collections.abc import Iterable
from logging import getLogger

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from mest_fed.errors import BudgetError, MestFedError, WireError
from mest_fed.nn import read_state
from mest_fed.schema import FailureKind, failure_of_code
from mest_fed.server.client_registry import ClientRegistry
from mest_fed.server.exchange import Awaited
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.instructions import SentTask
from mest_fed.server.node import Node
from mest_fed.server.round_record import SCORE, ClientOutcome, log_failed
from mest_fed.sparsity.state import SparseState
from mest_fed.task import Task
from mest_fed.task_scores import dense_task, salient_masks, scores_spec, scoring_plan
from mest_fed.wire import decode, encode
from mest_fed.wire.records import content_bytes, from_record, to_record

log = getLogger(__name__)

#: So many times the cohort is looked through for devices whose budgets hold a dense pass.
_MOST_DRAWN = 10


class FirstMasks:
    """Asks devices for scores, and gives the global model the masks of the best weights.

    Parameters
    ----------
    task : Task
        The run's.
    clients : ClientRegistry
        Whom to ask: as many as a cohort, the same for the same seed.
    """

    def __init__(self, task: Task, clients: ClientRegistry) -> None:
        self._task, self._clients = task, clients
        self._spec = scores_spec(task.spec)
        self._why_not = ""

    def choose(self, model: GlobalModel, grid: Grid) -> list[ClientOutcome]:
        """Choose the model's masks; return what became of the devices that were asked.

        Raises
        ------
        MestFedError
            If no device gives scores; says why.
        """
        content, nodes = self._content(), self._able()
        messages = [Message(content, node.node_id, SCORE) for node in nodes]
        size = content_bytes(content)
        awaited = Awaited(zip(messages, (SentTask(node, size) for node in nodes), strict=True))
        timeout = self._task.config.fleet.deadline or None
        total, weight = dict[str, np.ndarray](), 0.0
        outcomes = []
        for reply in self._replies(grid, messages, timeout):
            sent = awaited.take(reply)
            if sent is None:
                continue
            node, outcome = sent.node, sent.outcome()
            outcomes.append(outcome)
            scores = self._read(reply, node, outcome)
            if scores is not None:
                weight += node.examples
                for name, values in scores.dense.items():
                    total[name] = total.get(name, 0.0) + node.examples * values.astype(np.float64)
        outcomes += [sent.unanswered() for sent in awaited.rest()]
        outcomes.sort(key=lambda outcome: outcome.partition)
        if not weight:
            raise MestFedError(self._nobody(outcomes))
        mean = {name: (values / weight).astype(np.float32) for name, values in total.items()}
        masks = salient_masks(mean, self._task.spec, model.targets)
        model.put(read_state(self._task.build_model(masks)))
        dense_task.cache_clear()  # no round needs it
        good = sum(outcome.failure is None for outcome in outcomes)
        log.info("masks by the scores of %d devices of %d", good, len(outcomes))
        return outcomes

    def _content(self) -> RecordDict:
        dense = dense_task(self._task)
        payload, _ = encode(read_state(dense.build_model()), dense.spec)
        return to_record(payload)

    def _able(self) -> list[Node]:
        """Draw devices whose budgets hold a dense pass."""
        config = self._task.config
        wanted, able, drawn = config.server.clients_per_round, list[Node](), set[int]()
        while len(able) < wanted and len(drawn) < _MOST_DRAWN * wanted:
            path = (config.run.seed, 0, "scores")
            found = self._clients.sample(wanted - len(able), *path, without=drawn)
            if not found:
                break
            drawn |= {node.node_id for node in found}
            able += [node for node in found if self._holds(node)]
        return sorted(able, key=lambda node: node.partition)

    def _holds(self, node: Node) -> bool:
        try:
            scoring_plan(self._task, node.budget)
        except BudgetError as error:
            self._why_not = str(error)
            return False
        return True

    def _replies(
        self, grid: Grid, messages: list[Message], timeout: float | None
    ) -> Iterable[Message]:
        return grid.send_and_receive(messages, timeout=timeout) if messages else []

    def _read(self, reply: Message, node: Node, outcome: ClientOutcome) -> SparseState | None:
        """Return the scores that a reply brings; None where it brings none, which is noted."""
        if reply.has_error():
            outcome.fail(failure_of_code(reply.error.code), reply.error.reason)
            log_failed(log, f"scoring on node {node.label}", outcome)
            return None
        outcome.bytes_up = content_bytes(reply.content)
        try:
            return decode(from_record(reply.content), self._spec)
        except WireError as error:
            outcome.fail(FailureKind.UPDATE_REJECTED, str(error))
            log.warning("the scores of node %s were rejected: %s", node.label, error)
            return None

    def _nobody(self, outcomes: list[ClientOutcome]) -> str:
        why = next((it.reason for it in outcomes if it.reason), None) or self._why_not
        method = self._task.config.sparsity.method
        return f"sparsity.method = {method!r}: no device gave scores of the dense weights: {why}"
