"""A node's transfers: objects in chunks, which go on where they broke off."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from mest_fed.errors import WireError
from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.messages import Bytes, ObjectRef, Registration
from mest_fed.link.node.channel import Channel
from mest_fed.link.protocol import Refusal

#: Times that an upload begins again whose bytes did not arrive as they were.
_UPLOADS = 3


class Calling(Protocol):
    """Makes a call until it is answered."""

    def __call__(self, call: Callable[[], None], *, progress: Callable[[], int] = int) -> Any:
        """Make it; ``progress`` returns how far it has come."""


class Transfers:
    """Downloads and uploads of a node.

    Parameters
    ----------
    channel : Channel
        The connection.
    registration : callable
        Returns what the server said last.
    calling : Calling
        Makes calls until they are answered, by whatever session is the node's then.
    """

    def __init__(
        self, channel: Channel, registration: Callable[[], Registration], calling: Calling
    ) -> None:
        self._channel, self._registration, self._calling = channel, registration, calling

    def fetch(self, ref: ObjectRef) -> bytearray:
        """Return an object.

        Raises
        ------
        WireError
            If it is not what its name says.
        """
        data = bytearray()

        def once() -> None:
            request = pb.FetchRequest(
                session=self._registration().session, sha256=ref.sha256, offset=len(data)
            )
            for chunk in self._channel.read("Fetch", request, size=ref.size - len(data)):
                if len(data) + len(chunk.data) > ref.size:
                    raise WireError(f"an object is longer than its {ref.size} bytes")
                data.extend(chunk.data)
            if len(data) < ref.size:
                raise Refusal("UNAVAILABLE", "the transfer broke off")

        self._calling(once, progress=lambda: len(data))
        if ObjectRef.of(data) != ref:
            raise WireError("an object does not have its digest")
        return data

    def upload(self, instruction: str, ref: ObjectRef, data: Bytes) -> None:
        """Upload an object for an instruction."""
        view = memoryview(data).cast("B")
        reached, begun = 0, False

        def once() -> None:
            nonlocal reached, begun
            for attempt in range(_UPLOADS):
                if begun:
                    reached = self._received(instruction, ref)
                begun = True
                if reached == ref.size:
                    return
                # gRPC reads the parts in a thread of its own, perhaps when the node has left.
                registration = self._registration()
                parts = _parts(registration, instruction, ref, view, offset=reached)
                try:
                    self._channel.write("Upload", parts, size=ref.size - reached)
                    return
                except Refusal as refusal:
                    again = refusal.code in ("DATA_LOSS", "OUT_OF_RANGE")
                    if not again or attempt == _UPLOADS - 1:
                        raise

        self._calling(once, progress=lambda: reached)

    def _received(self, instruction: str, ref: ObjectRef) -> int:
        request = pb.UploadStateRequest(
            session=self._registration().session, instruction=instruction, sha256=ref.sha256
        )
        return int(self._channel.unary("UploadState", request).received)


def _parts(
    registration: Registration, instruction: str, ref: ObjectRef, data: memoryview, *, offset: int
) -> Iterator[pb.Part]:
    size = registration.chunk_bytes
    yield pb.Part(
        session=registration.session,
        instruction=instruction,
        sha256=ref.sha256,
        bytes=ref.size,
        offset=offset,
        data=bytes(data[offset : offset + size]),
    )
    for start in range(offset + size, ref.size, size):
        yield pb.Part(data=bytes(data[start : start + size]))
