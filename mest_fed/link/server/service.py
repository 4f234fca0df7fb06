"""The calls of the service ``EdgeLink``, answered from the book of nodes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

import grpc

from mest_fed.described import one_line
from mest_fed.errors import InputError, MestFedError
from mest_fed.link import codec
from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.codec import EDGE_LINK, parse, session_of
from mest_fed.link.messages import ObjectRef, Registration
from mest_fed.link.protocol import (
    LEAST_CHUNK,
    LONGEST_RUN,
    VERSION,
    Refusal,
    as_reason,
    check_digest,
    check_id,
    malformed,
)
from mest_fed.link.server.calls import Answer, Refusals, handlers, identity_of
from mest_fed.link.server.nodes import Identity, NodeInfo
from mest_fed.link.server.programs import PASSING, Programs
from mest_fed.link.server.sessions import Book

#: Returns the run's description, as JSON, for a node. InputError: the node cannot take part.
Describe = Callable[[NodeInfo], str]


class EdgeLinkService:
    """Answers nodes' calls. Everything here runs in one event loop.

    Parameters
    ----------
    book : Book
        The nodes.
    describe : callable
        Returns the run's description for a node.
    programs : Programs
        Compiled programs.
    executor : Executor
        Where ``describe`` runs.
    insecure : bool
        Whether nodes say their names themselves.
    """

    def __init__(
        self,
        book: Book,
        describe: Describe,
        programs: Programs,
        *,
        executor: Executor,
        insecure: bool,
    ) -> None:
        self._book, self._describe, self._programs = book, describe, programs
        self._executor, self._insecure = executor, insecure
        self._waiting: dict[int, asyncio.Event] = {}
        self._ended = ""

    def handlers(self, refusals: Refusals) -> grpc.GenericRpcHandler:
        """Return the handlers of the calls."""
        answers: dict[str, Answer] = {
            "Register": self.register,
            "Wait": self.wait,
            "Fetch": self.fetch,
            "Program": self.program,
            "UploadState": self.upload_state,
            "Upload": self.upload,
            "Report": self.report,
            "Heartbeat": self.heartbeat,
            "Leave": self.leave,
        }
        return handlers(EDGE_LINK, answers, refusals)

    def wake(self, node_id: int) -> None:
        """Have the node's Wait look again."""
        if node_id in self._waiting:
            self._waiting[node_id].set()

    def end(self, reason: str) -> None:
        """Refuse all calls from now on, those that wait included, and say why."""
        self._ended = reason
        for woken in self._waiting.values():
            woken.set()

    def _check_open(self) -> None:
        if self._ended:
            raise Refusal("UNAVAILABLE", self._ended, logged=True)

    async def register(self, message: pb.RegisterRequest, context: Any) -> pb.RegisterReply:
        """See the protocol."""
        self._check_open()
        if message.version != VERSION:
            raise Refusal("UNIMPLEMENTED", f"version {message.version}; spoken: {VERSION}")
        identity = identity_of(context, insecure=self._insecure)
        session = self._book.register(identity, codec.read_description(message))
        node = self._book.check(identity, session, counts=False)
        loop = asyncio.get_running_loop()
        try:
            run = await loop.run_in_executor(self._executor, self._describe, node)
            if len(run.encode()) > LONGEST_RUN:
                raise ValueError(f"a run's description is longer than {LONGEST_RUN} bytes")
        except Exception as error:
            with suppress(Refusal):
                self._book.leave(identity, session)
            if isinstance(error, (MestFedError, *PASSING)):
                raise
            # A node that was told INTERNAL would come again and again, for the same.
            cause = (
                f"the server cannot describe this run: {type(error).__name__}: {one_line(error)}"
            )
            raise Refusal("INVALID_ARGUMENT", as_reason(cause)) from error
        limits = self._book.limits
        return codec.write_registration(
            Registration(
                session=session,
                node_id=identity.node_id,
                chunk_bytes=limits.chunk_bytes,
                heartbeat_seconds=limits.heartbeat_seconds,
                wait_seconds=limits.wait_seconds,
                max_upload_bytes=limits.upload_bytes,
                run_json=run,
                name=identity.name,
                notice=self._notice(node),
            )
        )

    def _notice(self, node: NodeInfo) -> str:
        """Say which other node claims the same share of data; empty if none does."""
        claimed = node.description.partition
        if claimed is None:
            return ""
        for other in self._book.nodes():
            if other.id != node.id and other.description.partition == claimed:
                return (
                    f"the node {other.identity.name} claims partition {claimed}, too: one of them "
                    "takes part, the other when that one has left"
                )
        return ""

    async def wait(self, message: pb.WaitRequest, context: Any) -> pb.Work:
        """See the protocol."""
        identity, session = self._caller(message, context)
        if message.last_seen:
            check_id(message.last_seen)
        self.wake(identity.node_id)  # one that waits already
        woken = self._waiting[identity.node_id] = asyncio.Event()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._book.limits.wait_seconds):
                    while self._waiting.get(identity.node_id) is woken:
                        self._check_open()
                        woken.clear()
                        due = self._book.due(identity, session, message.last_seen)
                        if due is not None:
                            return pb.Work(instruction=codec.write_instruction(due))
                        await woken.wait()
        finally:
            if self._waiting.get(identity.node_id) is woken:
                del self._waiting[identity.node_id]
        self._book.check(identity, session, counts=False)
        return pb.Work()

    async def fetch(self, message: pb.FetchRequest, context: Any) -> None:
        """See the protocol."""
        identity, session = self._caller(message, context)
        check_digest(message.sha256)
        blob = self._book.blob(identity, session, message.sha256)
        if message.offset > blob.ref.size:
            raise Refusal("OUT_OF_RANGE", f"the object has {blob.ref.size} bytes")
        size = self._book.limits.chunk_bytes
        ended = self._book.begin_stream(identity, session)
        try:
            for start in range(message.offset, blob.ref.size, size):
                chunk = pb.Chunk(data=bytes(blob.data[start : start + size]))
                async with asyncio.timeout(self._book.limits.stall_seconds):
                    await context.write(chunk.SerializeToString())
        except TimeoutError:
            raise Refusal("RESOURCE_EXHAUSTED", "the transfer stood still") from None
        finally:
            ended()

    async def program(self, message: pb.ProgramRequest, context: Any) -> pb.ProgramReply:
        """See the protocol."""
        identity, session = self._caller(message, context)
        request = codec.read_program_request(message)
        self._book.spend_program(identity, session)
        node = self._book.check(identity, session, counts=False)
        ended = self._book.begin_stream(identity, session)
        try:
            blobs = await self._programs.get(node, request)
        finally:
            ended()
        self._book.add_program(identity, session, blobs)
        return codec.write_program_reply({name: blob.ref for name, blob in blobs.items()})

    async def upload_state(self, message: pb.UploadStateRequest, context: Any) -> Any:
        """See the protocol."""
        identity, session = self._caller(message, context)
        check_digest(message.sha256)
        found = self._book.received(identity, session, message.instruction, message.sha256)
        return pb.UploadStateReply(received=found)

    async def upload(self, parts: AsyncIterator[bytes], context: Any) -> pb.UploadReply:
        """See the protocol."""
        first = await self._next(parts)
        if first is None:
            raise malformed("an upload without parts")
        identity, session = self._caller(first, context)
        ref, name, position = ObjectRef(first.sha256, first.bytes), first.instruction, first.offset
        ended = self._book.begin_stream(identity, session)
        try:
            upload = self._book.begin_upload(identity, session, name, ref, offset=position)
            part: pb.Part | None = first
            while part is not None:
                size = len(part.data)
                if size > self._book.limits.chunk_bytes:
                    raise malformed(f"a part has at most {self._book.limits.chunk_bytes} bytes")
                if size < LEAST_CHUNK and position + size < ref.size:
                    raise malformed(f"a part before the last has at least {LEAST_CHUNK} bytes")
                node_id = identity.node_id
                position = self._book.append(node_id, name, upload, part.data, at=position)
                part = await self._next(parts)
        finally:
            ended()
        return pb.UploadReply(received=position)

    async def report(self, message: pb.ReportRequest, context: Any) -> pb.ReportReply:
        """See the protocol."""
        identity, session = self._caller(message, context)
        self._book.report(identity, session, codec.read_report(message))
        return pb.ReportReply()

    async def heartbeat(self, message: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatReply:
        """See the protocol."""
        identity, session = self._caller(message, context)
        return pb.HeartbeatReply(open=self._book.is_open(identity, session, message.instruction))

    async def leave(self, message: pb.LeaveRequest, context: Any) -> pb.LeaveReply:
        """See the protocol."""
        self._book.leave(*self._caller(message, context))
        return pb.LeaveReply()

    def _caller(self, message: Any, context: Any) -> tuple[Identity, bytes]:
        self._check_open()
        identity, session = identity_of(context, insecure=self._insecure), session_of(message)
        self._book.check(identity, session)
        return identity, session

    async def _next(self, parts: AsyncIterator[bytes]) -> pb.Part | None:
        try:
            async with asyncio.timeout(self._book.limits.stall_seconds):
                return parse(pb.Part, await anext(parts))
        except StopAsyncIteration:
            return None
        except TimeoutError:
            raise Refusal("RESOURCE_EXHAUSTED", "the transfer stood still") from None


def refuses_programs(node: NodeInfo, request: object) -> dict[str, bytes]:
    """Build no program: for a server whose nodes bring their own."""
    raise InputError("no programs are built here")
