"""What autograd saves, packed: for any module, whatever it computes.

Two nodes that save one tensor (the ReLU that made it, the convolution that reads it) share one
packed copy. What a fused normalisation gave is not kept at all where asked: its input is, packed,
and the output is computed again from it.
"""

import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from mest_fed.errors import MestFedError
from mest_fed.kernels.compact import dequantise, pack_nonzeros, quantise, unpack_nonzeros
from mest_fed.nn.norms import Normalised, watching


def packable(x: Tensor) -> bool:
    """Whether a tensor is of numbers that every format packs; others stay as they are."""
    return x.dtype in (torch.float32, torch.float64)


class Packed(ABC):
    """A packed activation.

    Attributes
    ----------
    shape, dtype
        Of the activation.
    parts : tuple of Tensor
        What is in memory.
    exact : bool
        Whether the activation comes back as it was.
    """

    exact: ClassVar[bool] = False

    def __init__(self, x: Tensor, *parts: Tensor) -> None:
        self.shape, self.dtype = x.shape, x.dtype
        self.parts = parts

    def made_of(self, *parts: Tensor) -> Self:
        """Return the same activation with these parts."""
        other = copy.copy(self)
        other.parts = parts
        return other

    @abstractmethod
    def images(self, first: int, last: int) -> Tensor:
        """Return the images [first, last) as they were, or nearly so; a new or a shared tensor."""

    def whole(self) -> Tensor:
        """Return all images."""
        return self.images(0, self.shape[0])


class AsIs(Packed):
    """Exact: the tensor itself, of any type and number of dimensions, which must stay as it is."""

    exact = True

    def __init__(self, x: Tensor) -> None:
        super().__init__(x, x.detach())
        self._version = x._version

    def made_of(self, *parts: Tensor) -> Self:
        """Return the same activation with these parts, which must stay as they are from now on."""
        other = super().made_of(*parts)
        other._version = parts[0]._version if parts else 0
        return other

    def images(self, first: int, last: int) -> Tensor:
        """Return the images [first, last), of the same memory."""
        return self.whole()[first:last]

    def whole(self) -> Tensor:
        """Return the tensor, or say that it is not what it was."""
        (x,) = self.parts
        if x._version != self._version:  # autograd does not look where others keep tensors
            raise MestFedError(
                f"a tensor of shape {tuple(self.shape)} was changed in place after it was kept for "
                "backward"
            )
        return x


class Half(Packed):
    """16 bits. What leaves float16's range is held to its ends; NaN stays NaN."""

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        short = x.detach()
        if dtype == torch.float16:
            most = torch.finfo(dtype).max
            short = short.clamp(-most, most)
        super().__init__(x, short.to(dtype))

    def images(self, first: int, last: int) -> Tensor:
        """Unpack the images [first, last)."""
        return self.parts[0][first:last].to(self.dtype)


class Bytes(Packed):
    """8 bits, one affine scale for each channel of each image: off by half a step at most."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x, *quantise(x.detach().contiguous()))

    def images(self, first: int, last: int) -> Tensor:
        """Unpack the images [first, last)."""
        codes, levels = self.parts
        planes = len(levels) // max(1, self.shape[0])
        return dequantise(codes[first:last], levels[first * planes : last * planes])


class Nonzero(Packed):
    """Exact: a bit for each element, and the values that are not zero; for what left a ReLU."""

    exact = True

    def __init__(self, x: Tensor) -> None:
        super().__init__(x, *pack_nonzeros(x.detach().contiguous()))

    def images(self, first: int, last: int) -> Tensor:
        """Unpack the images [first, last)."""
        bits, values, starts = self.parts
        return unpack_nonzeros(bits, values, starts, self.shape, first=first, last=last)


def int8(x: Tensor) -> Packed:
    """Pack in 8 bits; an attention mask has infinities, which no scale holds, and stays."""
    packed = Bytes(x)
    levels = packed.parts[1]
    bounded = levels.is_meta or not bool(levels.isnan().any()) or bool(x.isnan().any())
    return packed if bounded else AsIs(x)


def float16(x: Tensor) -> Packed:
    """Pack in IEEE half precision."""
    return Half(x, torch.float16)


def bfloat16(x: Tensor) -> Packed:
    """Pack in the upper half of single precision."""
    return Half(x, torch.bfloat16)


#: Smaller tensors, such as statistics and losses, stay as they are.
LEAST_BYTES = 2**12


@dataclass(frozen=True)
class _Renormalised:
    """The output of a normalisation, as its packed input and what turns one into the other."""

    packed: Packed
    made: Normalised

    def whole(self) -> Tensor:
        return self.made.again(self.packed.whole())


_Kept = Packed | _Renormalised


class SavedActivations:
    """Packs what autograd saves within the context.

    Parameters
    ----------
    pack : callable
        Makes a packed copy of an activation.
    own : iterable of Tensor
        Parameters and buffers: autograd's references to them cost nothing.
    renormalise : bool
        Whether outputs of normalisations are computed again.
    """

    def __init__(
        self, pack: Callable[[Tensor], Packed], own: Iterable[Tensor], *, renormalise: bool
    ) -> None:
        self._pack, self._renormalise = pack, renormalise
        self._own = {tensor.untyped_storage()._cdata for tensor in own if _has_storage(tensor)}
        self._kept: dict[tuple[Any, ...], tuple[StorageWeakRef, weakref.ref[_Kept]]] = {}
        self._made: list[_Kept] = []  # until the forward pass ends, someone may still save them
        self._stack = ExitStack()

    def __enter__(self) -> None:
        self._stack.enter_context(saved_tensors_hooks(self._save, self._restore))
        if self._renormalise:
            self._stack.enter_context(watching(self._note))

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._kept.clear()
        self._made.clear()

    def _note(self, y: Tensor, made: Normalised) -> None:
        """Remember how a normalisation's output can be made again."""
        if self._worth_packing(made.x) and self._worth_packing(y):
            packed = self._packed(made.x)
            assert isinstance(packed, Packed)
            self._remember(y, _Renormalised(packed, made.without_input()))

    def _save(self, tensor: Tensor) -> _Kept:
        return self._packed(tensor) if self._worth_packing(tensor) else AsIs(tensor)

    @staticmethod
    def _restore(kept: _Kept) -> Tensor:
        return kept.whole()

    def _worth_packing(self, tensor: Tensor) -> bool:
        return (
            _has_storage(tensor)
            and tensor.dim() >= 2
            and packable(tensor)
            and tensor.is_contiguous()
            and tensor.nbytes >= LEAST_BYTES
            and tensor.untyped_storage()._cdata not in self._own
        )

    def _packed(self, tensor: Tensor) -> _Kept:
        key = _key(tensor)
        if key in self._kept:
            kept = self._kept[key][1]()
            if kept is not None:
                return kept
        return self._remember(tensor, self._pack(tensor))

    def _remember(self, tensor: Tensor, kept: _Kept) -> _Kept:
        # The weak reference keeps the storage's address from being given to another one.
        storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._kept[_key(tensor)] = storage, weakref.ref(kept)
        if isinstance(kept, _Renormalised):
            self._made.append(kept)
        return kept


def _has_storage(tensor: Tensor) -> bool:
    """Whether a tensor is a dense one whose memory is there: not sparse, not a lazy parameter."""
    return tensor.layout == torch.strided and not nn.parameter.is_lazy(tensor)


def _key(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor._version
