"""The service ``Enrolment``: a token and a request become a certificate; wrong tokens wait."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import grpc

from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.codec import ENROLMENT
from mest_fed.link.protocol import LONGEST_REQUEST, LONGEST_TOKEN, Refusal, check_name, malformed
from mest_fed.link.server.calls import Refusals, handlers

#: ``(token, request as PEM, name) -> (certificate, authority)`` as PEM; None: the token is wrong.
#: InputError: the request is not one that is signed.
Enrol = Callable[[str, bytes, str], tuple[bytes, bytes] | None]

#: Attempts at the same time, and senders whose failures are remembered.
_AT_ONCE, _SENDERS = 32, 1024


class EnrolmentService:
    """Answers requests for certificates. Everything here runs in one event loop.

    Parameters
    ----------
    enrol : callable
        Checks a token, which it lets be used once, and signs a request.
    executor : Executor
        Where it runs.
    first_pause, longest_pause : float
        Seconds that the sender of a wrong token waits for the answer; doubled each time.
    """

    def __init__(
        self,
        enrol: Enrol,
        executor: Executor,
        *,
        first_pause: float = 0.5,
        longest_pause: float = 16.0,
    ) -> None:
        self._enrol, self._executor = enrol, executor
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._busy: set[str] = set()

    @property
    def wrong_tokens(self) -> int:
        """Wrong tokens of the senders that are remembered."""
        return sum(self._failures.values())

    def handlers(self, refusals: Refusals) -> grpc.GenericRpcHandler:
        """Return the handlers of the calls."""
        return handlers(ENROLMENT, {"Enrol": self.answer}, refusals)

    async def answer(self, message: pb.EnrolRequest, context: Any) -> pb.EnrolReply:
        """See the protocol."""
        check_name("name", message.name)
        if not 0 < len(message.token) <= LONGEST_TOKEN:
            raise malformed(f"a token has 1 to {LONGEST_TOKEN} characters")
        if not 0 < len(message.csr_pem) <= LONGEST_REQUEST:
            raise malformed(f"a request has 1 to {LONGEST_REQUEST} bytes")
        sender = _address(context.peer())
        if sender in self._busy or len(self._busy) >= _AT_ONCE:
            raise Refusal("RESOURCE_EXHAUSTED", "one attempt at a time")
        self._busy.add(sender)
        try:
            return await self._attempt(message, sender)
        finally:
            self._busy.discard(sender)

    async def _attempt(self, message: pb.EnrolRequest, sender: str) -> pb.EnrolReply:
        failures = self._failures.get(sender, 0)
        if failures:  # before the token is looked at: its answer is not sooner for a right one
            await asyncio.sleep(min(self._longest_pause, self._first_pause * 2 ** (failures - 1)))
        made = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._enrol, message.token, message.csr_pem, message.name
        )
        if made is None:
            self._failures[sender] = min(failures + 1, 32)
            self._failures.move_to_end(sender)
            while len(self._failures) > _SENDERS:
                self._failures.popitem(last=False)
            cause = f"the token of {message.name!r} is wrong, used or old"
            raise Refusal("UNAUTHENTICATED", "", cause=cause)
        self._failures.pop(sender, None)
        return pb.EnrolReply(certificate_pem=made[0], authority_pem=made[1])


def _address(peer: str) -> str:
    """Return the address of a peer, without its port."""
    return peer.rpartition(":")[0] or peer
