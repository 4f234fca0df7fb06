"""A model as the footprint sees it: its state, and a meta model that can train without data."""

import copy
import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mest_fed.kernels import torch_threads
from mest_fed.kernels.native import scratch_of
from mest_fed.memory.meter import warm_up
from mest_fed.nn import ModelSpec, SparseLayer, model_spec

#: Images of the pass that makes the kernels take their scratch memory.
_SCRATCH_IMAGES = 4


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of a batch."""
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


@dataclass(frozen=True)
class TrainingLoss:
    """What a step minimises, whose tensors are part of its memory; cross-entropy by default.

    Parameters
    ----------
    total : callable
        (outputs, targets) -> the sum of a batch's losses, a scalar.
    target_shape : tuple of int
        Of one example's target.
    target_dtype : torch.dtype
        Of targets.
    """

    total: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    target_shape: tuple[int, ...] = ()
    target_dtype: torch.dtype = torch.int64

    def targets(self, count: int, device: str) -> Tensor:
        """Return targets of so many examples, all zero."""
        return torch.zeros(count, *self.target_shape, dtype=self.target_dtype, device=device)


CROSS_ENTROPY = TrainingLoss()


def _stand_in(outputs: Tensor, targets: Tensor) -> Tensor:
    """Take what a softmax and its gradient take, whatever the targets are."""
    return nn.functional.log_softmax(outputs, dim=-1).square().sum()


def _traceable(loss: TrainingLoss, meta_model: nn.Module, inputs: Tensor) -> TrainingLoss:
    """Return a loss, or a stand-in for one that cannot be computed without numbers."""
    try:
        outputs = meta_model.train()(inputs)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return loss  # a model that cannot be traced either is measured as a whole
    try:
        loss.total(outputs, loss.targets(len(inputs), "meta"))
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"the loss cannot be traced without numbers ({reason}); plans count it as a softmax",
            RuntimeWarning,
            stacklevel=3,
        )
        return replace(loss, total=_stand_in)
    return loss


@dataclass(frozen=True)
class ModelTrace:
    """Sizes of a model, in bytes unless said otherwise, and its meta_model.

    Parameters
    ----------
    spec : ModelSpec
        The sparse layers and dense tensors.
    meta_model : nn.Module
        The model on torch's meta device: shapes, and no memory.
    input_shape : tuple of int
        Of one input, such as (channels, height, width).
    dense_parameters : int
        Parameters outside the sparse layers.
    buffers : int
        Running statistics and the like.
    scratch : int
        What the compiled kernels keep as scratch memory for each thread, beyond what the warm-up
        has them take (which stands in the baseline); measured with a small batch.
    input_dtype : torch.dtype
        Of the inputs: float32, or int64 for tokens.
    loss : TrainingLoss
        What training minimises.
    known : dict
        Footprints that were worked out.
    """

    spec: ModelSpec
    meta_model: nn.Module
    input_shape: tuple[int, ...]
    dense_parameters: int
    buffers: int
    scratch: int
    input_dtype: torch.dtype = torch.float32
    loss: TrainingLoss = CROSS_ENTROPY
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def image(self) -> int:
        """One input."""
        return self.input_dtype.itemsize * math.prod(self.input_shape)

    def at(self, active: Mapping[str, int]) -> nn.Module:
        """Return a meta model whose sparse layers have so many active granules, by layer."""
        model = meta_model_of(self.meta_model)
        for name, count in active.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, SparseLayer)
            values = torch.empty(count, layer.layout.width, device="meta")
            layer.values = nn.Parameter(values)
            layer.slots = torch.empty(count, dtype=torch.int32, device="meta")
        return model


def trace_model(
    model: nn.Module,
    input_shape: tuple[int, ...],
    input_dtype: torch.dtype = torch.float32,
    loss: TrainingLoss = CROSS_ENTROPY,
) -> ModelTrace:
    """Trace a (sparse or dense) model.

    The model stays as it is, its buffers and gradients included; nothing is drawn.

    Parameters
    ----------
    model : nn.Module
        Maps (n, *input_shape) to logits.
    input_shape : tuple of int
        Of one input, such as (channels, height, width).
    input_dtype : torch.dtype
        Of the inputs: float32, or int64 for tokens.
    loss : TrainingLoss
        What training minimises. One that needs numbers is counted as a softmax; a warning says so.
    """
    spec = model_spec(model)
    parameters = {name for name, _ in model.named_parameters()}
    sizes = {name: 4 * math.prod(shape) for name, shape in spec.dense.items()}
    return ModelTrace(
        spec=spec,
        meta_model=meta_model_of(model),
        input_shape=tuple(input_shape),
        dense_parameters=sum(size for name, size in sizes.items() if name in parameters),
        buffers=sum(size for name, size in sizes.items() if name not in parameters),
        scratch=_scratch(model, input_shape, input_dtype) if spec.groups else 0,
        input_dtype=input_dtype,
        loss=_traceable(
            loss,
            meta_model_of(model),
            torch.empty(2, *input_shape, dtype=input_dtype, device="meta"),
        ),
    )


def meta_model_of(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device without copying its numbers."""
    memo: dict[int, Tensor] = {}
    for parameter in model.parameters():
        shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        memo[id(parameter)] = nn.Parameter(shape, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
    return copy.deepcopy(model, memo)


def _scratch(model: nn.Module, input_shape: tuple[int, ...], input_dtype: torch.dtype) -> int:
    """Measure what the kernels of a thread take for a model, beyond what a warm-up takes."""
    twin = copy.deepcopy(model).train()
    images = torch.zeros(_SCRATCH_IMAGES, *input_shape, dtype=input_dtype)
    with torch_threads(1):
        taken = scratch_of(lambda: twin(images).sum().backward())
        return max(0, taken - _warmed_up())


@cache
def _warmed_up() -> int:
    return scratch_of(warm_up)


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
