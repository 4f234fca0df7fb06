"""Live bytes of a piece of work on meta tensors: nothing is computed, every allocation is counted.

A dispatch mode sees each operator that torch runs, forward and backward, and the storages that it
makes; a weak reference says when each is gone. So the peak is that of the real order of things,
recomputation, packing and the optimizer included, at the cost of a few milliseconds a layer.
"""

import math
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mest_fed.memory.hidden import Hidden

#: What a storage is until someone says otherwise.
WORK = "workspace"

_PAGE = 4096
#: Blocks from this size on are mapped by themselves, in whole pages; see meter.ALLOCATOR.
_MAPPED = 2**16

Bytes = Counter[str]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages by kind, and keeps the counts of the peak.

    Parameters
    ----------
    hidden : Hidden
        Knows what operators take for themselves.

    Attributes
    ----------
    peak : Counter
        Bytes by kind at the peak since :meth:`begin`.
    """

    def __init__(self, hidden: Hidden) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._hidden = hidden
        self._live: dict[int, tuple[str, int]] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._now: Bytes = Counter()
        self._most = -1
        self.peak: Bytes = Counter()

    def begin(self) -> None:
        """Look for the peak from now on."""
        self._most = -1
        self._compare(0)

    def mark(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say what tensors are."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._live:
                self._add(storage)
            before, size = self._live[storage._cdata]
            self._live[storage._cdata] = kind, size
            self._now[before] -= size
            self._now[kind] += size
        self._compare(0)

    def mark_rest(self, kind: str) -> None:
        """Say what all storages are that nobody has said anything of."""
        for key, (before, size) in self._live.items():
            if before == WORK:
                self._live[key] = kind, size
        self._now[kind] += self._now.pop(WORK, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._live:
                    self._add(storage)
        self._compare(self._hidden.while_running(func.name(), args, result))
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, in_memory(storage.nbytes())
        self._live[key] = WORK, size
        self._now[WORK] += size
        self._watched[key] = weakref.ref(storage, lambda _: self._remove(key))

    def _remove(self, key: int) -> None:
        kind, size = self._live.pop(key)
        self._now[kind] -= size
        del self._watched[key]

    def _compare(self, hidden: int) -> None:
        hidden += self._hidden.kept
        total = self._now.total() + hidden
        if total > self._most:
            self._most, self.peak = total, self._now.copy()
            self.peak[WORK] += hidden


def in_memory(count: int) -> int:
    """Return what a block of some bytes takes: whole pages, and one more, where it is mapped."""
    return count if count < _MAPPED else (math.ceil(count / _PAGE) + 1) * _PAGE
