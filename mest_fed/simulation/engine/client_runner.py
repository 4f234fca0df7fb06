"""Running clients: messages and contexts through a ClientApp, in any process.

A client gets records, generators and one thread of its own. What it does to them reaches no other
client and not the server, so the result depends on neither the process nor the clients that ran
before it there.
"""

import random
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from mest_fed.described import kind_of
from mest_fed.errors import InputError
from mest_fed.kernels import torch_threads
from mest_fed.references import REFERENCES, is_reference
from mest_fed.references import resolve as resolve_reference
from mest_fed.server.aggregation.partial import PairwiseSum, PartialAggregate, WorkerAggregator
from mest_fed.server.flower_internals import APP_RAISED, copy_arrays, error_reply, rebuild_message
from mest_fed.simulation.engine.client_output import OutputCapture, Printed
from mest_fed.simulation.engine.interfaces import TaskConditions, TaskResult


def private_copy(records: RecordDict) -> RecordDict:
    """Copy all of records that can be edited: records, arrays and lists.

    The data of arrays are bytes, which cannot be edited, so that they are shared: a copy costs
    less than a microsecond for each array, however large.
    """
    copies = RecordDict()
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            copies[name] = copy_arrays(record)
            continue
        copies[name] = fresh = record.copy()
        for key, value in fresh.items():
            if isinstance(value, list):
                fresh[key] = list(value)
    return copies


class Generators:
    """The global generators of :mod:`random`, NumPy and torch, as clients find them.

    A client that draws from them (to shuffle, to drop out, to add noise) draws the same in every
    process, whatever ran there before. A server that runs in the same process draws from them, too:
    Flower's strategies sample nodes by :mod:`random`, and its differential privacy takes its noise
    from NumPy.
    """

    def __init__(self) -> None:
        self._bits = np.random.MT19937(0)
        # The one for all devices takes 80 us; without a GPU there is the CPU's generator alone.
        on_gpu = torch.cuda.is_available()
        self._seed_torch = torch.manual_seed if on_gpu else torch.default_generator.manual_seed

    def begin_at(self, seed: int) -> None:
        """Seed them; ``seed`` is from 0 to 2**63 - 1."""
        random.seed(seed)
        np.random.set_bit_generator(self._bits)  # type: ignore[attr-defined]
        np.random.seed(seed % 2**32)  # noqa: NPY002 - what clients draw from
        self._seed_torch(seed)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put them back after the block to where they were. Takes 0.1 ms."""
        python, native = random.getstate(), torch.default_generator.get_state()
        bits = np.random.get_bit_generator()  # type: ignore[attr-defined]
        # The state holds half of a pair of normal draws as well, which the generator does not.
        state = np.random.get_state(legacy=False)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            torch.default_generator.set_state(native)
            np.random.set_bit_generator(bits)  # type: ignore[attr-defined]
            np.random.set_state(state)  # noqa: NPY002


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Have torch compute on one thread, record gradients and make float32 tensors in the block.

    What a client sets instead does not outlive it.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch_threads(1), torch.enable_grad():  # with more, sums have other bits
            yield
    finally:
        torch.set_default_dtype(dtype)


class Job(NamedTuple):
    """One client's work.

    Parameters
    ----------
    message : Message
        The instruction.
    context : Context
        What the client had so far.
    conditions : TaskConditions or None
        What behaviour does to it, if anything.
    cost : float
        How long it takes, compared with others of its kind.
    memory : int
        Bytes that it needs beside those of its process.
    seed : int
        Where the global generators begin for the client; from 0 to 2**63 - 1.
    """

    message: Message
    context: Context
    conditions: TaskConditions | None = None
    cost: float = 1.0
    memory: int = 0
    seed: int = 0


class Outcome(NamedTuple):
    """What came of a job: what reaches the server, and the client's state from now on."""

    task_result: TaskResult
    state: RecordDict

    @property
    def reply(self) -> Message:
        """The reply that reaches the server."""
        return self.task_result.reply


class TaskTimeout(Enum):
    """What stands for the outcome of a job that did not come in time."""

    MISSED = "missed"


class ClientRun(NamedTuple):
    """A client's reply, its state, what it printed, and the traceback of what it raised."""

    reply: Message
    state: RecordDict
    printed: str = ""
    traceback: str | None = None


class Block(NamedTuple):
    """Outcomes of consecutive jobs, the sum of what was taken out of their replies, their output.

    Clients that raise the same give one traceback.
    """

    outcomes: list[Outcome]
    partial: PartialAggregate | None = None
    printed: tuple[Printed, ...] = ()


@dataclass(frozen=True)
class ClientRunner:
    """What a process needs to run any client.

    Parameters
    ----------
    client_app : ClientApp
        The client.
    generators : Generators
        The global generators that clients draw from.
    output : OutputCapture
        Catches what clients print.
    """

    client_app: ClientApp
    generators: Generators = field(default_factory=Generators)
    output: OutputCapture = field(default_factory=OutputCapture)

    def run(
        self, jobs: Iterable[Job], aggregator: WorkerAggregator[Message] | None = None
    ) -> Block:
        """Run clients one after the other, resolve their replies and aggregate them."""
        outcomes, pairwise = [], PairwiseSum()
        printed: list[Printed] = []
        raised: set[str] = set()
        for job in jobs:
            done = run_client(self, job)
            node_id = job.message.metadata.dst_node_id
            if done.printed:
                printed.append(Printed(node_id, done.printed))
            if done.traceback is not None and done.traceback not in raised:
                raised.add(done.traceback)
                printed.append(Printed(node_id, done.traceback, raised=True))
            outcome = resolve(job, done.reply, done.state)
            if aggregator is not None:
                outcome, partial = _aggregator(aggregator, job, outcome)
                pairwise.add(partial)
            outcomes.append(outcome)
        return Block(outcomes, pairwise.total(), tuple(printed))


def load_client_app(client_app: ClientApp | str) -> ClientApp:
    """Return a ClientApp given as an object or as a reference.

    Raises
    ------
    InputError
        If the text does not lead to a ClientApp.
    """
    if isinstance(client_app, ClientApp):
        return client_app
    what = f"cannot load the ClientApp {client_app!r}"
    if not is_reference(client_app):
        raise InputError(f"{what}: allowed: {', '.join(REFERENCES)}")
    try:
        loaded = resolve_reference(client_app)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error.__cause__
    if not isinstance(loaded, ClientApp):
        raise InputError(f"{client_app!r} is {kind_of(loaded)}, not a ClientApp")
    return loaded


def run_client(runner: ClientRunner, job: Job) -> ClientRun:
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
    with runner.output.client() as text:
        try:
            runner.generators.begin_at(job.seed)
            with torch_defaults():
                reply = runner.client_app(message, context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {kind_of(reply)}, not a Message")
        except (Exception, SystemExit) as error:
            reply = error_reply(job.message, APP_RAISED, one_line(error))
            return ClientRun(reply, job.context.state, str(text), _traceback(error))
    state = job.context.state if reply.has_error() else context.state
    return ClientRun(reply, state, str(text))


def resolve(job: Job, reply: Message, state: RecordDict) -> Outcome:
    """Return what comes of a reply under the conditions of its job."""
    if job.conditions is None:
        return Outcome(TaskResult(reply), state)
    task_result = job.conditions.resolve(job.message, reply)
    return Outcome(task_result, state if task_result.keeps_state else job.context.state)


def _aggregator(
    aggregator: WorkerAggregator[Message], job: Job, outcome: Outcome
) -> tuple[Outcome, PartialAggregate | None]:
    if outcome.reply.has_error():
        return outcome, None
    try:
        partial, reply = aggregator.map(outcome.reply)
    except Exception as error:  # an aggregator of a user's strategy may raise anything
        reply = error_reply(
            job.message, APP_RAISED, f"its reply cannot be summed: {one_line(error)}"
        )
        partial = None
    return Outcome(replace(outcome.task_result, reply=reply), outcome.state), partial


def _traceback(error: BaseException) -> str:
    """Return a traceback from the client's own code on: what runs it is left out."""
    frames = error.__traceback__
    return "".join(traceback.format_exception(error.with_traceback(frames and frames.tb_next)))


def one_line(error: BaseException) -> str:
    """Return an exception as one line of text."""
    return " ".join("".join(traceback.format_exception_only(error)).split())
