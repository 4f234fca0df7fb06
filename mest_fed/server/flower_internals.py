"""The one place that touches Flower internals: what we need and Flower does not publish.

Written against flwr 1.41 and 1.42, as pyproject.toml allows;
``tests/simulation/test_grid_internals.py`` is the contract test that fails when one of these moves.
"""

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import WARNING, Handler, LogRecord, StreamHandler
from os import environ
from typing import Any

from click import ClickException
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Error,
    Message,
    Metadata,
    RecordDict,
    UserConfigValue,
)
from flwr.app.message import make_message
from flwr.common.config import flatten_dict, parse_config_args
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.logger import FLOWER_LOGGER, console_handler
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from mest_fed.errors import InputError, not_allowed

__all__ = [
    "APP_RAISED",
    "FLOWER_CONSOLE",
    "NODE_UNAVAILABLE",
    "WORKER_DIED",
    "Result",
    "Run",
    "bare_array",
    "claim_identity",
    "context_state_from_bytes",
    "context_state_to_bytes",
    "copy_arrays",
    "empty_run",
    "error_reply",
    "flat_config",
    "own_lines",
    "parse_overrides",
    "plain_console",
    "printed_by",
    "rebuild_message",
    "recorded_results",
    "set_message_id",
]

#: The handler that writes Flower's log to the console.
FLOWER_CONSOLE: StreamHandler[Any] = console_handler
#: Codes of error replies.
APP_RAISED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
WORKER_DIED: int = ErrorCode.CLIENT_APP_CRASHED
NODE_UNAVAILABLE: int = ErrorCode.NODE_UNAVAILABLE


def plain_console() -> None:
    """Have Flower's console write no codes of colours where its stream is no terminal."""
    console_handler.colored = console_handler.stream.isatty() and not environ.get("NO_COLOR")


@contextmanager
def printed_by(handler: Handler) -> Iterator[None]:
    """Have Flower print by this handler alone."""
    before = list(FLOWER_LOGGER.handlers)
    for other in before:
        FLOWER_LOGGER.removeHandler(other)
    FLOWER_LOGGER.addHandler(handler)
    try:
        yield
    finally:
        FLOWER_LOGGER.removeHandler(handler)
        for other in before:
            FLOWER_LOGGER.addHandler(other)


@contextmanager
def own_lines() -> Iterator[None]:
    """Leave out what Flower's loop over rounds says of itself.

    A strategy of ours says all of it in lines of its own. Flower counts rounds from 1 where a run
    goes on, and writes its whole history out at the end. Warnings stay.
    """

    def is_told(record: LogRecord) -> bool:
        return record.levelno >= WARNING

    FLOWER_LOGGER.addFilter(is_told)  # not of loggers below it, such as ours
    try:
        yield
    finally:
        FLOWER_LOGGER.removeFilter(is_told)


def empty_run(run_id: int) -> Run:
    """Return a run that has an id and nothing else."""
    return Run.create_empty(run_id)


def claim_identity(run_id: int) -> None:
    """Make this process the server of a run: ``Message(...)`` reads its source from there."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as the SuperLink does when it takes one in."""
    message.metadata.__dict__["_message_id"] = message_id


def rebuild_message(metadata: Metadata, content: RecordDict | Error) -> Message:
    """Return a message with a copy of the metadata, and this content or error."""
    if isinstance(content, Error):
        return make_message(copy.copy(metadata), error=content)
    return make_message(copy.copy(metadata), content)


def bare_array(dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Array:
    """Return an array, as ``Array(...)`` does, without its ten times slower checks."""
    array = Array.__new__(Array)
    array.__dict__.update(dtype=dtype, shape=shape, stype=stype, data=data)
    return array


def copy_arrays(record: ArrayRecord) -> ArrayRecord:
    """Return a record of new arrays over the same bytes."""
    fresh = record.copy()
    fresh.__dict__["_data"] = {
        # An array may have been given a buffer that can be edited.
        name: bare_array(array.dtype, array.shape, array.stype, bytes(array.data))
        for name, array in record.items()
    }
    return fresh


def error_reply(instruction: Message, code: int, reason: str) -> Message:
    """Return the reply that says why an instruction has no result."""
    return Message(Error(code, reason), reply_to=instruction)


def context_state_to_bytes(state: RecordDict) -> bytes:
    """Write a client's state as Flower's protobuf, for a checkpoint."""
    encoded: bytes = recorddict_to_proto(state).SerializeToString(deterministic=True)
    return encoded


def context_state_from_bytes(data: bytes) -> RecordDict:
    """Read what :func:`context_state_to_bytes` wrote.

    Raises
    ------
    InputError
        If the bytes are not a client's state.
    """
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(data))
    except (DecodeError, TypeError, ValueError) as error:
        raise InputError(f"these {len(data)} bytes are not a client's state: {error}") from error


def flat_config(table: Mapping[str, Any]) -> dict[str, UserConfigValue]:
    """Flatten the run configuration of an app: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``.

    Raises
    ------
    ValueError
        If a value is not a scalar or a table.
    """
    return dict(flatten_dict(dict(table)))


def parse_overrides(overrides: Sequence[str]) -> dict[str, UserConfigValue]:
    """Read the values of ``flwr run --run-config``.

    Raises
    ------
    InputError
        If one is neither ``key=value`` pairs nor, alone, the path of a TOML file.
    """
    found: dict[str, UserConfigValue] = {}
    alone = len(overrides) == 1
    for text in overrides:
        try:
            if not alone and text.endswith(".toml"):
                raise ValueError("a file stands alone")
            given = parse_config_args([text])
        except FileNotFoundError:
            raise InputError(f"--run-config: no such file: {text}") from None
        except (ClickException, OSError, ValueError) as error:
            reason = " ".join(str(getattr(error, "message", error)).split())
            raise InputError(f"--run-config {text!r} is not allowed: {reason}") from None
        if not given and text.strip() and not text.endswith(".toml"):
            allowed = "\"key=value key2='text'\", or the path of a TOML file"
            raise not_allowed("--run-config", text, allowed)
        found |= given
    return found


@contextmanager
def recorded_results() -> Iterator[list[tuple[str, Result]]]:
    """Collect what strategies return in the block: the name of each strategy and its result.

    A ServerApp returns nothing, and its strategy keeps nothing, so that ``Strategy.start`` is
    wrapped for the block. A strategy with a ``start`` of its own is not seen.
    """
    results: list[tuple[str, Result]] = []
    start = Strategy.start

    @functools.wraps(start)
    def recorded(strategy: Strategy, *arguments: Any, **keywords: Any) -> Result:
        result = start(strategy, *arguments, **keywords)
        results.append((type(strategy).__name__, result))
        return result

    Strategy.start = recorded
    try:
        yield results
    finally:
        Strategy.start = start


def run_server_app(
    server_app: ServerApp,
    grid: Grid,
    *,
    run_config: Mapping[str, UserConfigValue] | None = None,
) -> Context:
    """Run a ServerApp to its end and return its context.

    Parameters
    ----------
    server_app : ServerApp
        Any Flower ServerApp.
    grid : Grid
        The fleet.
    run_config : mapping of str to scalar, optional
        What the app finds in ``context.run_config``.
    """
    claim_identity(grid.run.run_id)
    context = Context(
        run_id=grid.run.run_id,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config or {}),
    )
    server_app(grid, context)
    return context
