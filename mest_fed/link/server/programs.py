"""Programs that nodes ask for: built once for each shape, by a callback, in another thread."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace

from mest_fed.link.messages import MOST_OBJECTS, Bytes, NodeDescription, ProgramRequest, Refusal
from mest_fed.link.server.objects import Blob
from mest_fed.link.server.sessions import NodeInfo

#: Builds the programs of a request: name -> bytes. InputError: the node asks for what cannot be.
Builder = Callable[[NodeInfo, ProgramRequest], Mapping[str, Bytes]]
Blobs = Mapping[str, Blob]
_Key = tuple[NodeDescription, ProgramRequest]

#: Programs that wait to be built.
_MOST_WAITING = 64


class Programs:
    """Programs by the shape of node and request. Used in one event loop.

    Parameters
    ----------
    build : callable
        Makes them. Nodes that differ in name and number of examples alone share what it makes.
    most_bytes : int
        Those that were used last are kept, up to so many bytes.
    executor : Executor
        Where it runs.
    """

    def __init__(self, build: Builder, most_bytes: int, executor: Executor) -> None:
        self._build, self._most_bytes, self._executor = build, most_bytes, executor
        self._built: OrderedDict[_Key, Blobs] = OrderedDict()
        self._building: dict[_Key, asyncio.Future[Blobs]] = {}

    async def get(self, node: NodeInfo, request: ProgramRequest) -> Blobs:
        """Return what a program consists of.

        Raises
        ------
        Refusal
            If too many programs wait to be built.
        """
        shape = replace(node.description, name="any", examples=0, partition=None)
        key = shape, request
        if key in self._built:
            self._built.move_to_end(key)
            return self._built[key]
        if key not in self._building:
            if len(self._building) >= _MOST_WAITING:
                raise Refusal("RESOURCE_EXHAUSTED", "too many programs wait to be built")
            work = asyncio.get_running_loop().run_in_executor(
                self._executor, self._make, node, request
            )
            self._building[key] = work
            work.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(self._building[key])

    def _make(self, node: NodeInfo, request: ProgramRequest) -> Blobs:
        made = {name: Blob(data) for name, data in self._build(node, request).items()}
        if len(made) > MOST_OBJECTS:
            raise ValueError(f"a program of {len(made)} objects; at most {MOST_OBJECTS}")
        for blob in made.values():
            _ = blob.ref  # hashed here, not in the event loop
        return made

    def _keep(self, key: _Key, done: "asyncio.Future[Blobs]") -> None:
        del self._building[key]
        if done.cancelled() or done.exception():
            return
        self._built[key] = done.result()
        while len(self._built) > 1 and self._bytes() > self._most_bytes:
            self._built.popitem(last=False)

    def _bytes(self) -> int:
        return sum(blob.ref.size for made in self._built.values() for blob in made.values())
