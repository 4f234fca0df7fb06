"""Live bytes of work on meta tensors, with the workspace that operators allocate internally."""

import math
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")
_PRODUCTS = ("aten::mm", "aten::addmm")

#: What oneDNN keeps of each distinct convolution: compiled code and its scratch. Measured, as the
#: rest that dense networks leave unexplained, 25 to 70 kB.
PRIMITIVE = 20_000
#: A matrix product whose largest operand has so many bytes makes MKL keep packed copies, of about
#: half that operand (measured).
LARGE_OPERAND = 2**20


class OperatorOverhead:
    """Counts what operators take while they run, and what they keep from then on.

    Parameters
    ----------
    threads : int
        Of the compiled kernels.

    Attributes
    ----------
    kept : int
        Bytes that the operators so far have kept.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._seen: set[tuple[Any, ...]] = set()
        self._packed = 0
        self._primitives = 0

    @property
    def kept(self) -> int:
        """Bytes that the operators so far have kept."""
        return self._packed + self._primitives

    def while_running(self, name: str, given: Any, made: Any) -> int:
        """Note an operator; return what it takes beside its arguments and results.

        Parameters
        ----------
        name : str
            Such as ``mest_fed::conv2d``.
        given, made : tuple
            Its arguments and its result or results.
        """
        if name.startswith("mest_fed::conv2d"):
            return _kernels(name, given, self._threads)
        if name in _CONVOLUTIONS:
            shapes = (name, *(tuple(t.shape) for t in given if isinstance(t, Tensor)))
            if shapes not in self._seen:
                self._seen.add(shapes)
                # Forward is one primitive, backward two.
                self._primitives += PRIMITIVE * (2 if "backward" in name else 1)
            return _blocked_copies(given, given[2 if "backward" in name else 1], made)
        if name in _PRODUCTS:
            largest = max(t.nbytes for t in (*given, made) if isinstance(t, Tensor))
            if largest >= LARGE_OPERAND:
                self._packed = max(self._packed, largest // 2)
        return 0


def _kernels(name: str, given: Any, threads: int) -> int:
    """Count the decoded mask and, for the values' gradient, a sum a thread (native/convolve.cpp).

    Single rows go backward along a turned list of the mask: columns, origins and values once more.
    """
    tensors = [tensor for tensor in given if isinstance(tensor, Tensor)]
    slots = next(tensor for tensor in tensors if tensor.dtype == torch.int32)
    cells = [t for t in tensors if t.dtype == torch.int32 and t.dim() == 2]
    rows = next(number for number in given if isinstance(number, int))
    entries = len(slots) * (cells[0].shape[1] if cells else 1)
    lists = 2
    if rows == 1 and ("input" in name or "backward" in name):
        lists += 4
    sums = threads * entries * rows if "values" in name or "backward" in name else 0
    return 4 * (lists * entries + sums)


def _blocked_copies(given: Any, weight: Tensor, made: Any) -> int:
    """Reckon what oneDNN takes to bring operands into its blocked forms.

    That is a copy of each activation and of the weight, and two of a weight that is turned (as one
    of a layer that is sparse in its input channels is). Reckoned so as to fit measurements.
    """
    results = made if isinstance(made, tuple | list) else (made,)
    tensors = [t for t in (*given, *results) if isinstance(t, Tensor) and t.dim() == 4]
    planes = [t for t in tensors if t.shape != weight.shape]
    return sum(t.nbytes for t in planes) + weight.nbytes * (1 if weight.is_contiguous() else 3)


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
    overhead : OperatorOverhead
        Computes the workspace that operators allocate internally.

    Attributes
    ----------
    peak : Counter
        Bytes by kind at the peak since :meth:`begin`.
    """

    def __init__(self, overhead: OperatorOverhead) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._overhead = overhead
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
        """Give a kind to all storages that have none yet."""
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
        self._compare(self._overhead.while_running(func.name(), args, result))
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

    def _compare(self, overhead: int) -> None:
        overhead += self._overhead.kept
        total = self._now.total() + overhead
        if total > self._most:
            self._most, self.peak = total, self._now.copy()
            self.peak[WORK] += overhead


class FusedAttention(TorchFunctionMode):
    """Has attention on meta tensors keep what the CPU's fused kernel keeps, not all scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention and _is_fused(*args, **kwargs):
            query, key, value = args[:3]
            return _FusedProduct.apply(query, key, value)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


def _is_fused(*args: Any, **options: Any) -> bool:
    """Whether the CPU computes attention with its fused kernel: as torch 2.13 decides."""
    plain = len(args) == 3 and not options.get("dropout_p") and not options.get("enable_gqa")
    mask = options.get("attn_mask")
    sizes = {it.shape[-1] for it in args[:3]}
    return (
        plain
        and len(sizes) == 1
        and args[0].dim() == 4
        and not (mask is not None and mask.requires_grad)
    )


class _FusedProduct(torch.autograd.Function):
    """Attention of (n, heads, length, features): its output, and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1]))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def in_memory(count: int) -> int:
    """Return what a block of some bytes takes: whole pages, and one more, where it is mapped."""
    return count if count < _MAPPED else (math.ceil(count / _PAGE) + 1) * _PAGE
