"""Evaluation on clients: when it is due, who is asked, and what their replies come to."""

from collections.abc import Collection, Iterable, Sequence
from logging import getLogger

import numpy as np
from flwr.app import Message

from mest_fed.config import RunConfig
from mest_fed.errors import WireError
from mest_fed.run_rows.rounds import Spread
from mest_fed.schema import failure_of_code
from mest_fed.server.client_registry import ClientRegistry
from mest_fed.server.instructions import Instructions, SentTask
from mest_fed.server.node import Node
from mest_fed.server.round_record import ClientOutcome, finite_only, log_failed
from mest_fed.server.update_validator import read_counts
from mest_fed.training import Metrics, Objective
from mest_fed.wire.records import content_bytes

log = getLogger(__name__)

#: How long an evaluation waits for a device that is started anew, without a deadline.
_BACK_SECONDS = 60.0


def is_due(config: RunConfig, number: int) -> bool:
    """Say whether clients evaluate after a round (from 1): each so many, and the last."""
    every = config.server.evaluate_clients_every
    return every != 0 and (number % every == 0 or number == config.run.rounds)


def patience(config: RunConfig) -> float:
    """Return the seconds for which a device that is started anew just then is waited for.

    Up to ``fleet.deadline``, or a while where there is none: without it, what the run comes to
    would be of other examples.
    """
    return config.fleet.deadline or _BACK_SECONDS


def draw_evaluators(
    clients: ClientRegistry, config: RunConfig, number: int, busy: Collection[int]
) -> list[Node]:
    """Draw the nodes that evaluate after a round: of those that were drawn, who can.

    Parameters
    ----------
    clients : ClientRegistry
        Whom to draw from.
    config : RunConfig
        The run's.
    number : int
        The round.
    busy : collection of int
        Ids of nodes that have no time.
    """
    path = (config.run.seed, number, "evaluation")
    nodes = clients.sample(config.server.evaluate_clients, *path, without=busy)
    return [node for node in nodes if node.held_out > 0]


def collect(
    instructions: Instructions, replies: Iterable[Message], objective: Objective
) -> tuple[list[ClientOutcome], list[Metrics]]:
    """Return what became of each node that was asked, and the metrics that were found.

    Parameters
    ----------
    instructions : Instructions
        What was sent.
    replies : iterable of Message
        In any order.
    objective : Objective
        What was learned.
    """
    outcomes, found = [], []
    for sent, reply in instructions.matched(replies):
        outcome = sent.outcome()
        outcomes.append(outcome)
        totals = _totals(sent, reply, outcome, objective)
        if totals is not None:
            instructions.note_mask(sent.node)
            outcome.note_score(totals, objective)
            found.append(totals)
    for sent in instructions.rest():
        outcomes.append(sent.unanswered())
        log.warning("evaluation on node %s failed: no reply", sent.node.label)
    return outcomes, found


def _totals(
    sent: SentTask, reply: Message, outcome: ClientOutcome, objective: Objective
) -> Metrics | None:
    """Return the metrics that a reply brings; None, and a line in the log, where it brings none."""
    node = sent.node
    if reply.has_error():
        outcome.fail(failure_of_code(reply.error.code), reply.error.reason)
        log_failed(log, f"evaluation on node {node.label}", outcome)
        return None
    outcome.bytes_up = content_bytes(reply.content)
    try:
        totals = read_counts(reply, node.held_out, objective=objective).totals
        if totals.examples != node.held_out:
            raise WireError(f"{totals.examples} presented of {node.held_out} held out")
    except WireError as error:
        log.warning("evaluation of node %s was rejected: %s", node.label, error)
        return None
    return totals


#: Quantiles of the clients' metrics that are kept.
SPREAD = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


def spread_of(clients: Sequence[Metrics], objective: Objective) -> dict[str, Spread]:
    """Return how the clients' metrics spread, without those that are not finite for a client."""
    together = Metrics()
    for client in clients:
        together.loss += client.loss
        together.examples += client.examples
        together.count += client.count
        together.add_sums(client.sums)
    values = [client.values(objective) for client in clients if client.count]
    spreads = {}
    for name, mean in finite_only(together.values(objective)).items():
        each = np.asarray([value[name] for value in values])
        if np.isfinite(each).all():
            quantiles = {key: float(np.quantile(each, share)) for key, share in SPREAD.items()}
            spreads[name] = Spread(mean=mean, **quantiles)
    return spreads
