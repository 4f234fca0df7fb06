"""Objects of the edge link on the server: what nodes fetch, and what they upload.

An object is bytes, named by their SHA-256. Those for nodes are in memory once, however many nodes
are due to fetch them. Uploads are bounded before a byte of them is kept: of each node, and of all.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mest_fed.link.messages import Bytes, ObjectRef
from mest_fed.link.protocol import Refusal


class Blob:
    """Bytes that nodes may fetch, hashed once.

    Parameters
    ----------
    data : bytes
        The object.
    """

    def __init__(self, data: Bytes) -> None:
        self.data = memoryview(data).cast("B").toreadonly()

    @cached_property
    def ref(self) -> ObjectRef:
        """What names it."""
        return ObjectRef.of(self.data)


class ObjectStore:
    """Blobs by digest, each as long as something refers to it."""

    def __init__(self) -> None:
        self._blobs: dict[bytes, tuple[Blob, int]] = {}

    def add(self, blob: Blob) -> Blob:
        """Refer to a blob once more; return the one that is kept."""
        kept, references = self._blobs.get(blob.ref.sha256, (blob, 0))
        self._blobs[blob.ref.sha256] = kept, references + 1
        return kept

    def release(self, blob: Blob) -> None:
        """Refer to it once less."""
        kept, references = self._blobs[blob.ref.sha256]
        if references > 1:
            self._blobs[blob.ref.sha256] = kept, references - 1
        else:
            del self._blobs[blob.ref.sha256]

    @property
    def bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(blob.ref.size for blob, _ in self._blobs.values())


class Room:
    """Bytes that nodes may have in flight: uploads, and results that nobody has polled.

    Parameters
    ----------
    each, all_together : int
        Most bytes of one node, and of all.
    """

    def __init__(self, each: int, all_together: int) -> None:
        self.each, self.all_together = each, all_together
        self.taken = 0
        self._of_node: dict[int, int] = {}

    def of_node(self, node_id: int) -> int:
        """Return what a node has in flight."""
        return self._of_node.get(node_id, 0)

    def take(self, node_id: int, size: int) -> None:
        """Take room.

        Raises
        ------
        Refusal
            If there is too little.
        """
        if self.of_node(node_id) + size > self.each:
            raise Refusal("RESOURCE_EXHAUSTED", f"a node has at most {self.each} bytes in flight")
        if self.taken + size > self.all_together:
            raise Refusal("RESOURCE_EXHAUSTED", "the server has too much in flight")
        self.taken += size
        self._of_node[node_id] = self.of_node(node_id) + size

    def give_back(self, node_id: int, size: int) -> None:
        """Give room back."""
        self.taken -= size
        left = self.of_node(node_id) - size
        if left:
            self._of_node[node_id] = left
        else:
            self._of_node.pop(node_id, None)


@dataclass(eq=False)
class Upload:
    """An object that arrives.

    Parameters
    ----------
    ref : ObjectRef
        What was announced. Memory is taken as data comes.
    """

    ref: ObjectRef
    data: bytearray = field(default_factory=bytearray)
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def complete(self) -> bool:
        """Whether all of it has arrived."""
        return len(self.data) == self.ref.size


class Uploads:
    """The uploads of one instruction.

    Parameters
    ----------
    node_id : int
        The node that works on it.
    most_bytes, most_objects : int
        Bounds of the instruction.
    room : Room
        Bounds of the node and of the server.
    """

    def __init__(self, node_id: int, most_bytes: int, most_objects: int, room: Room) -> None:
        self._node_id, self._room = node_id, room
        self._most_bytes, self._most_objects = most_bytes, most_objects
        self._uploads: dict[bytes, Upload] = {}

    @property
    def taken(self) -> int:
        """Bytes that were announced."""
        return sum(each.ref.size for each in self._uploads.values())

    def received(self, sha256: bytes) -> int:
        """Return how much of an object is here."""
        found = self._uploads.get(sha256)
        return len(found.data) if found else 0

    def begin(self, ref: ObjectRef, offset: int) -> Upload:
        """Begin an upload, or go on with it.

        A node that crashed may make something else the second time: its oldest uploads give way.

        Raises
        ------
        Refusal
            If it is too large, or the offset is not where it stands.
        """
        if ref.size > self._most_bytes:
            raise Refusal("INVALID_ARGUMENT", f"more than {self._most_bytes} bytes for a report")
        found = self._uploads.get(ref.sha256)
        if found is not None and found.ref != ref:
            raise Refusal("INVALID_ARGUMENT", "the object was announced with another length")
        if offset != (len(found.data) if found else 0):
            raise Refusal("OUT_OF_RANGE", f"offset {offset} is not where the upload stands")
        if found is None:
            while self._uploads and not self._fits(ref):
                self._drop(next(iter(self._uploads)))
            self._room.take(self._node_id, ref.size)
            found = self._uploads[ref.sha256] = Upload(ref)
        return found

    def append(self, upload: Upload, offset: int, data: bytes) -> int:
        """Append data; return how much of the object is here.

        Raises
        ------
        Refusal
            If it was dropped meanwhile or has grown otherwise, is longer than announced, or has
            another digest at its end.
        """
        if self._uploads.get(upload.ref.sha256) is not upload or offset != len(upload.data):
            raise Refusal("OUT_OF_RANGE", f"offset {offset} is not where the upload stands")
        if offset + len(data) > upload.ref.size:
            self._drop(upload.ref.sha256)
            raise Refusal("INVALID_ARGUMENT", "the object is longer than was announced")
        upload.data += data
        upload.hash.update(data)
        if upload.complete and upload.hash.digest() != upload.ref.sha256:
            self._drop(upload.ref.sha256)
            raise Refusal("DATA_LOSS", "the object does not have its digest")
        return len(upload.data)

    def take(self, refs: Mapping[str, ObjectRef]) -> dict[str, Bytes]:
        """Take objects that are complete, as a report names them, and drop the rest.

        What is taken keeps its room, which its receiver gives back.

        Raises
        ------
        Refusal
            If one is not complete; nothing changes then.
        """
        taken: dict[str, Bytes] = {}
        for name, ref in refs.items():
            found = self._uploads.get(ref.sha256)
            if not ref.size and ref == ObjectRef.of(b""):
                taken[name] = b""
            elif not ref.size or found is None or found.ref != ref or not found.complete:
                raise Refusal("DATA_LOSS", f"object {name} was not uploaded completely")
            else:
                taken[name] = found.data
        for sha256 in {ref.sha256 for ref in refs.values()}:
            self._uploads.pop(sha256, None)
        self.drop_all()
        return taken

    def drop_all(self) -> None:
        """Drop what is here."""
        for sha256 in list(self._uploads):
            self._drop(sha256)

    def _fits(self, ref: ObjectRef) -> bool:
        return (
            self.taken + ref.size <= self._most_bytes
            and len(self._uploads) < self._most_objects
            and self._room.of_node(self._node_id) + ref.size <= self._room.each
        )

    def _drop(self, sha256: bytes) -> None:
        self._room.give_back(self._node_id, self._uploads.pop(sha256).ref.size)
