"""Programs that nodes ask for: built once for each shape, by a callback, in another thread."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace

from mest_fed.described import described, one_line
from mest_fed.errors import InputError
from mest_fed.link.messages import Bytes, NodeDescription, ProgramRequest
from mest_fed.link.protocol import MOST_OBJECTS, Refusal, as_reason
from mest_fed.link.server.nodes import NodeInfo
from mest_fed.link.server.objects import Blob
from mest_fed.units import number_of

log = logging.getLogger("mest_fed.link")

#: Builds the programs of a request: name -> bytes. InputError: the node asks for what cannot be.
Builder = Callable[[NodeInfo, ProgramRequest], Mapping[str, Bytes]]
#: Writes a line of a level into the log.
Log = Callable[[int, str], None]
Blobs = Mapping[str, Blob]
_Key = tuple[NodeDescription, ProgramRequest]

#: Programs that wait to be built.
_MOST_WAITING = 64
#: Programs that could not be built, of which the reason is kept: those that failed last.
_MOST_FAILED = 1024
#: Causes that may pass, and the seconds before each further attempt.
PASSING = (OSError, MemoryError)
_PAUSES = (1.0, 4.0)


class Programs:
    """Programs by the shape of node and request. Used in one event loop.

    A request that failed is not built again: whoever asks is told why.

    Parameters
    ----------
    build : callable
        Makes them. Nodes that differ in name and number of examples alone share what it makes.
    most_bytes : int
        Those that were used last are kept, up to so many bytes.
    executor : Executor
        Where it runs.
    log : callable
        Where failures are written, once each.
    """

    def __init__(self, build: Builder, most_bytes: int, executor: Executor, log: Log) -> None:
        self._build, self._most_bytes, self._executor = build, most_bytes, executor
        self._log = log
        self._built: OrderedDict[_Key, Blobs] = OrderedDict()
        self._failed: OrderedDict[_Key, str] = OrderedDict()
        self._building: dict[_Key, asyncio.Future[Blobs | str]] = {}

    async def get(self, node: NodeInfo, request: ProgramRequest) -> Blobs:
        """Return what a program consists of.

        Raises
        ------
        Refusal
            If it cannot be built, or too many programs wait to be built.
        """
        shape = replace(node.description, name="any", examples=0, partition=None)
        key = shape, request
        if key in self._built:
            self._built.move_to_end(key)
            return self._built[key]
        made: Blobs | str | None = self._failed.get(key)
        if made is None:
            made = await asyncio.shield(self._begun(key, node))
        if isinstance(made, str):
            raise Refusal("INVALID_ARGUMENT", made, logged=True)
        return made

    def _begun(self, key: _Key, node: NodeInfo) -> "asyncio.Future[Blobs | str]":
        """Return the work on a program, which all wait for that ask meanwhile."""
        if key not in self._building:
            if len(self._building) >= _MOST_WAITING:
                raise Refusal("RESOURCE_EXHAUSTED", "too many programs wait to be built")
            work = asyncio.ensure_future(self._try(node, key[1]))
            self._building[key] = work
            work.add_done_callback(lambda done: self._keep(key, done))
        return self._building[key]

    async def _try(self, node: NodeInfo, request: ProgramRequest) -> Blobs | str:
        """Build a program; return why not if that fails, which the log then says once."""
        loop = asyncio.get_running_loop()
        program = f"the {request.kind} program of {number_of(request.examples, 'example')}"
        tries = 0
        while True:
            tries += 1
            made = await loop.run_in_executor(self._executor, self._make, node, request)
            if not isinstance(made, BaseException):
                return made
            if tries > len(_PAUSES) or not isinstance(made, PASSING):
                break
            pause = _PAUSES[tries - 1]
            line = f"{program}: {described(made)}; next attempt in {pause:g} s"
            self._log(logging.WARNING, as_reason(line))
            await asyncio.sleep(pause)
        after = f" after {tries} attempts" if tries > 1 else ""
        line = f"{program} is not built again: it failed{after}: {described(made)}"
        self._log(logging.ERROR, as_reason(line))
        if isinstance(made, InputError):
            return as_reason(one_line(made))
        cause = f"{type(made).__name__}: {one_line(made)}"
        return as_reason(f"the server cannot build this program{after}: {cause}")

    def _make(self, node: NodeInfo, request: ProgramRequest) -> Blobs | BaseException:
        """Build a program, or return the error: raised in a loop, some would end it."""
        try:
            made = {name: Blob(data) for name, data in self._build(node, request).items()}
            if len(made) > MOST_OBJECTS:
                raise ValueError(f"a program of {len(made)} objects; at most {MOST_OBJECTS}")
            for blob in made.values():
                _ = blob.ref  # hashed here, not in the event loop
        except (Exception, SystemExit) as error:  # a user's code may end the process
            log.debug("the failure in full", exc_info=error)
            return error
        return made

    def _keep(self, key: _Key, done: "asyncio.Future[Blobs | str]") -> None:
        del self._building[key]
        if done.cancelled() or done.exception():
            return
        made = done.result()
        if isinstance(made, str):
            self._failed[key] = made
            while len(self._failed) > _MOST_FAILED:
                self._failed.popitem(last=False)
            return
        self._built[key] = made
        while len(self._built) > 1 and self._bytes() > self._most_bytes:
            self._built.popitem(last=False)

    def _bytes(self) -> int:
        return sum(blob.ref.size for made in self._built.values() for blob in made.values())
