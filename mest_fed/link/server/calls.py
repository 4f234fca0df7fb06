"""What all calls have in common on the server: who calls, what is refused, what is logged."""

import hashlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, NoReturn

import grpc

from mest_fed.errors import BudgetError, InputError
from mest_fed.link.codec import Method, parse
from mest_fed.link.protocol import (
    NEEDS_HEADER,
    NODE_HEADER,
    SAID_HEADER,
    Refusal,
    as_reason,
    check_name,
)
from mest_fed.link.server.limits import Allowance
from mest_fed.link.server.nodes import Identity

log = logging.getLogger("mest_fed.link")

#: What a node meets in the ordinary course of things.
_ORDINARY = ("FAILED_PRECONDITION", "ALREADY_EXISTS", "RESOURCE_EXHAUSTED", "ABORTED")

#: What a node meets whose server was started anew, or that leaves after it was refused.
_EXPECTED = ("NOT_FOUND",)

#: Letters of a name in the log.
_LONGEST_NAME = 64

Answer = Callable[[Any, Any], Awaitable[Any]]


def identity_of(context: Any, *, insecure: bool) -> Identity:
    """Return who calls.

    Raises
    ------
    Refusal
        If the call shows no certificate, or without TLS no name.
    """
    if insecure:
        names = [value for key, value in context.invocation_metadata() if key == NODE_HEADER]
        name = names[0] if names and isinstance(names[0], str) else ""
        check_name(NODE_HEADER, name)
        return Identity(hashlib.sha256(f"insecure {name}".encode()).digest(), name)
    found = context.auth_context()
    certificates = found.get("x509_pem_cert")
    if not certificates:
        raise Refusal("PERMISSION_DENIED", "a client certificate is needed")
    names = found.get("x509_common_name") or [b""]
    return _identity(certificates[0], names[0])


@lru_cache(maxsize=4096)
def _identity(pem: bytes, name: bytes) -> Identity:
    der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
    return Identity(hashlib.sha256(der).digest(), as_reason(name.decode("utf-8", "replace")))


class Refusals:
    """Tells callers why a call is not granted, and the log in one line each.

    Parameters
    ----------
    lines_per_second : float
        More lines are not written; a burst of twenty times as many is.
    """

    def __init__(self, lines_per_second: float = 10.0) -> None:
        self._lines = Allowance(lines_per_second, int(20 * lines_per_second))

    async def refuse(self, method: Method, context: Any, error: Exception) -> NoReturn:
        """End a call with the status of an error."""
        said = [(SAID_HEADER, "1")]
        if isinstance(error, BudgetError) and error.needs:
            said.append((NEEDS_HEADER, str(error.needs)))
        if isinstance(error, InputError):
            error = Refusal("INVALID_ARGUMENT", as_reason(str(error)))
        if isinstance(error, Refusal):
            level = logging.INFO if error.code in _ORDINARY else logging.WARNING
            level = logging.DEBUG if error.logged or error.code in _EXPECTED else level
            code, text = error.code, str(error)
            why = text or error.cause
            self.log(level, f"{_who(context)}: {method.name} refused: {_joined(code, why)}")
        else:
            code, text = "INTERNAL", ""
            line = as_reason(_joined(type(error).__name__, str(error)))
            self.log(logging.ERROR, f"{_who(context)}: {method.name} failed: {line}")
            log.debug("the failure in full", exc_info=error)
        await context.abort(grpc.StatusCode[code], text, tuple(said))
        raise AssertionError("abort raises")

    def log(self, level: int, line: str) -> None:
        """Write a line, unless there were too many."""
        try:
            self._lines.spend("lines")
        except Refusal:
            level = logging.DEBUG
        log.log(level, "%s", line)


def _joined(kind: str, text: str) -> str:
    """Return an error's kind and what it says, if that is anything."""
    return f"{kind}: {text}" if text else kind


def _who(context: Any) -> str:
    """Return who calls, for the log: by certificate or, without TLS, by what it says; and where."""
    peer = context.peer()
    shown = (context.auth_context() or {}).get("x509_common_name")
    said = dict(context.invocation_metadata() or ()).get(NODE_HEADER)
    name = shown[0].decode("utf-8", "replace") if shown else said
    return f"node {as_reason(name)[:_LONGEST_NAME]} ({peer})" if isinstance(name, str) else peer


def handlers(
    methods: Mapping[str, Method], answers: Mapping[str, Answer], refusals: Refusals
) -> grpc.GenericRpcHandler:
    """Return the handlers of a service. They take and give bytes.

    gRPC does not parse messages here: it would log a traceback of each malformed one.

    Parameters
    ----------
    methods : mapping of str to Method
        Of one service.
    answers : mapping of str to coroutine function
        For each method ``(message, context) -> message``. One that streams in gets the iterator of
        bytes; one that streams out writes bytes to the context, and returns None.
    refusals : Refusals
        Where errors go.
    """
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
    }
    made = {
        name: makers[method.streams_in, method.streams_out](
            _guarded(method, answers[name], refusals)
        )
        for name, method in methods.items()
    }
    service = next(iter(methods.values())).path.split("/")[1]
    return grpc.method_handlers_generic_handler(service, made)


def _guarded(method: Method, answer: Answer, refusals: Refusals) -> Answer:
    async def guarded(given: Any, context: Any) -> bytes | None:
        try:
            message = given if method.streams_in else parse(method.request, given)
            reply = await answer(message, context)
        except Exception as error:
            await refusals.refuse(method, context, error)
        return None if method.streams_out else bytes(reply.SerializeToString())

    return guarded
