"""Running one client: a message and a context through a ClientApp, in whatever process this is.

A client gets records of its own and one thread. What it does to them reaches nobody else, so the
result depends on neither the process nor the clients that ran before it there.
"""

import importlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from mest_fed.errors import InputError
from mest_fed.kernels.choice import Choices, told, using
from simulations.engine.flower_internals import APP_RAISED, error_reply, rebuild_message


class Job(NamedTuple):
    """One client's work: the instruction and the context that the client had so far."""

    message: Message
    context: Context


class Outcome(NamedTuple):
    """What came of a job: the reply, and the client's state from now on."""

    reply: Message
    state: RecordDict


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
        raise InputError(f"cannot load the ClientApp {client_app!r}: {_one_line(error)}") from error
    if not isinstance(loaded, ClientApp):
        raise InputError(f"{client_app!r} is a {type(loaded).__name__}, not a ClientApp")
    return loaded


def run_job(client_app: ClientApp, job: Job, choices: Choices | None = None) -> Outcome:
    """Run one client, with the kernels that the run chose, if it did.

    A client that raises, or returns no message, gives an error reply with the exception in one
    line, and its state stays as it was.
    """
    message = rebuild_message(job.message.metadata, _private(job.message.content))
    context = Context(
        run_id=job.context.run_id,
        node_id=job.context.node_id,
        node_config=dict(job.context.node_config),
        state=_private(job.context.state),
        run_config=dict(job.context.run_config),
    )
    try:
        with one_thread(), using(told() if choices is None else choices):
            reply = client_app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned a {type(reply).__name__}, not a Message")
    except (Exception, SystemExit) as error:
        failure = error_reply(job.message, APP_RAISED, _one_line(error))
        return Outcome(failure, job.context.state)
    return Outcome(reply, context.state)


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


def _one_line(error: BaseException) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())
