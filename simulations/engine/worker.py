"""Running clients: messages and contexts through a ClientApp, in whatever process this is.

A client gets records of its own and one thread. What it does to them reaches nobody else, so the
result depends on neither the process nor the clients that ran before it there.
"""

import importlib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from mest_fed.errors import InputError
from mest_fed.folding import Fold, PairwiseSum, Partial
from mest_fed.kernels.choice import Choices, told, using
from simulations.engine.fate import Conditions, Settled
from simulations.engine.flower_internals import APP_RAISED, error_reply, rebuild_message


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
    """

    message: Message
    context: Context
    conditions: Conditions | None = None
    cost: float = 1.0
    memory: int = 0


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


class Block(NamedTuple):
    """Outcomes of consecutive jobs, and the sum of what was folded out of their replies."""

    outcomes: list[Outcome]
    partial: Partial | None = None


@dataclass(frozen=True)
class Workplace:
    """What a process needs to run any client.

    Parameters
    ----------
    client_app : ClientApp
        The client.
    choices : Choices, optional
        The kernels that the run chose; by default those of this process.
    """

    client_app: ClientApp
    choices: Choices | None = None

    def run(self, jobs: Iterable[Job], fold: Fold[Message] | None = None) -> Block:
        """Run clients one after the other, settle what comes of them and fold their replies."""
        outcomes, pairwise = [], PairwiseSum()
        for job in jobs:
            outcome = settle(job, *run_client(self, job))
            if fold is not None:
                outcome, partial = _fold(fold, job, outcome)
                pairwise.add(partial)
            outcomes.append(outcome)
        return Block(outcomes, pairwise.total())


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
    except Exception as error:
        raise InputError(f"cannot load the ClientApp {client_app!r}: {one_line(error)}") from error
    if not isinstance(loaded, ClientApp):
        raise InputError(f"{client_app!r} is a {type(loaded).__name__}, not a ClientApp")
    return loaded


def run_client(workplace: Workplace, job: Job) -> tuple[Message, RecordDict]:
    """Run one client; return its reply and its state.

    A client that raises, or returns no message, gives an error reply with the exception in one
    line. After an error its state stays as it was.
    """
    message = rebuild_message(job.message.metadata, _private(job.message.content))
    context = Context(
        run_id=job.context.run_id,
        node_id=job.context.node_id,
        node_config=dict(job.context.node_config),
        state=_private(job.context.state),
        run_config=dict(job.context.run_config),
    )
    choices = workplace.choices
    try:
        with one_thread(), using(told() if choices is None else choices):
            reply = workplace.client_app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned a {type(reply).__name__}, not a Message")
    except (Exception, SystemExit) as error:
        return error_reply(job.message, APP_RAISED, one_line(error)), job.context.state
    if reply.has_error():
        return reply, job.context.state
    return reply, context.state


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


def _private(records: RecordDict) -> RecordDict:
    """Copy records and the lists in them; arrays, which nobody edits in place, are shared."""
    copies = RecordDict()
    for name, record in records.items():
        copies[name] = fresh = record.copy()
        if isinstance(fresh, ArrayRecord):
            continue
        for key, value in fresh.items():
            if isinstance(value, list):
                fresh[key] = list(value)
    return copies


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: with more, sums have other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def one_line(error: BaseException) -> str:
    """Return an exception as one line of text."""
    return " ".join("".join(traceback.format_exception_only(error)).split())
