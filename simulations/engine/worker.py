"""Running clients: messages and contexts through a ClientApp, in whatever process this is.

A client gets records, generators and one thread of its own. What it does to them reaches no other
client and not the server, so the result depends on neither the process nor the clients that ran
before it there.
"""

import importlib
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from logging import getLogger
from typing import NamedTuple

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from mest_fed.errors import InputError
from mest_fed.folding import Fold, PairwiseSum, Partial
from mest_fed.kernels.choice import Choices, told, using
from simulations.engine.fate import Conditions, Settled
from simulations.engine.flower_internals import APP_RAISED, error_reply, rebuild_message
from simulations.engine.isolation import Generators, private_copy, torch_defaults

log = getLogger("mest_fed.run")

#: A client that raises something else each time shall not fill the disk.
_MOST_TRACEBACKS = 100


class Job(NamedTuple):
    """One client's work.

    Parameters
    ----------
    message : Message
        The instruction.
    context : Context
        What the client had so far.
    conditions : Conditions or None
        What life does to it, if anything.
    cost : float
        How long it takes, compared with others of its kind.
    memory : int
        Bytes that it needs beside those of its process.
    seed : int
        Where the global generators begin for the client; from 0 to 2**63 - 1.
    """

    message: Message
    context: Context
    conditions: Conditions | None = None
    cost: float = 1.0
    memory: int = 0
    seed: int = 0


class Outcome(NamedTuple):
    """What came of a job: what reaches the server, and the client's state from now on."""

    settled: Settled
    state: RecordDict

    @property
    def reply(self) -> Message:
        """The reply that reaches the server."""
        return self.settled.reply


class Missed(Enum):
    """What stands for the outcome of a job that did not come in time."""

    MISSED = "missed"


class ClientRun(NamedTuple):
    """A client's reply, its state, and the traceback of what it raised, if it did."""

    reply: Message
    state: RecordDict
    traceback: str | None = None


class Block(NamedTuple):
    """Outcomes of consecutive jobs, the sum of what was folded out of their replies, tracebacks."""

    outcomes: list[Outcome]
    partial: Partial | None = None
    tracebacks: tuple[str, ...] = ()


class Tracebacks:
    """Writes what clients raised into ``run.log``, each traceback once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def log(self, block: Block) -> None:
        """Write the tracebacks of a block that were not written before."""
        for text in block.tracebacks:
            if text not in self._seen and len(self._seen) < _MOST_TRACEBACKS:
                self._seen.add(text)
                log.warning("a client raised an error:\n%s", text.rstrip())


@dataclass(frozen=True)
class Workplace:
    """What a process needs to run any client.

    Parameters
    ----------
    client_app : ClientApp
        The client.
    choices : Choices, optional
        The kernels that the run chose; by default those of this process.
    generators : Generators
        The global generators that clients draw from.
    """

    client_app: ClientApp
    choices: Choices | None = None
    generators: Generators = field(default_factory=Generators)

    def run(self, jobs: Iterable[Job], fold: Fold[Message] | None = None) -> Block:
        """Run clients one after the other, settle what comes of them and fold their replies."""
        outcomes, pairwise = [], PairwiseSum()
        tracebacks: dict[str, None] = {}
        for job in jobs:
            done = run_client(self, job)
            if done.traceback is not None:
                tracebacks[done.traceback] = None
            outcome = settle(job, done.reply, done.state)
            if fold is not None:
                outcome, partial = _fold(fold, job, outcome)
                pairwise.add(partial)
            outcomes.append(outcome)
        return Block(outcomes, pairwise.total(), tuple(tracebacks))


def load_client_app(client_app: ClientApp | str) -> ClientApp:
    """Return a ClientApp given as an object or as ``"module:attribute"``.

    Raises
    ------
    InputError
        If the text does not lead to a ClientApp.
    """
    if isinstance(client_app, ClientApp):
        return client_app
    module, _, attribute = client_app.partition(":")
    try:
        loaded = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot load the ClientApp {client_app!r}: {one_line(error)}") from error
    if not isinstance(loaded, ClientApp):
        raise InputError(f"{client_app!r} is a {type(loaded).__name__}, not a ClientApp")
    return loaded


def run_client(workplace: Workplace, job: Job) -> ClientRun:
    """Run one client.

    A client that raises, or returns no message, gives an error reply with the exception in one
    line. After an error its state stays as it was.
    """
    message = rebuild_message(job.message.metadata, private_copy(job.message.content))
    context = Context(
        run_id=job.context.run_id,
        node_id=job.context.node_id,
        node_config=dict(job.context.node_config),
        state=private_copy(job.context.state),
        run_config=dict(job.context.run_config),
    )
    choices = workplace.choices
    try:
        workplace.generators.begin_at(job.seed)
        with torch_defaults(), using(told() if choices is None else choices):
            reply = workplace.client_app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned a {type(reply).__name__}, not a Message")
    except (Exception, SystemExit) as error:
        reply = error_reply(job.message, APP_RAISED, one_line(error))
        return ClientRun(reply, job.context.state, _traceback(error))
    return ClientRun(reply, job.context.state if reply.has_error() else context.state)


def settle(job: Job, reply: Message, state: RecordDict) -> Outcome:
    """Return what comes of a reply under the conditions of its job."""
    if job.conditions is None:
        return Outcome(Settled(reply), state)
    settled = job.conditions.settle(job.message, reply)
    return Outcome(settled, state if settled.keeps_state else job.context.state)


def _fold(fold: Fold[Message], job: Job, outcome: Outcome) -> tuple[Outcome, Partial | None]:
    if outcome.reply.has_error():
        return outcome, None
    try:
        partial, reply = fold.lift(outcome.reply)
    except Exception as error:
        reply = error_reply(
            job.message, APP_RAISED, f"its reply cannot be summed: {one_line(error)}"
        )
        partial = None
    return Outcome(replace(outcome.settled, reply=reply), outcome.state), partial


def _traceback(error: BaseException) -> str:
    """Return a traceback from the client's own code on: what runs it is left out."""
    frames = error.__traceback__
    return "".join(traceback.format_exception(error.with_traceback(frames and frames.tb_next)))


def one_line(error: BaseException) -> str:
    """Return an exception as one line of text."""
    return " ".join("".join(traceback.format_exception_only(error)).split())
