"""What autograd saves, packed: for any module, whatever it computes.

Two nodes that save one tensor (the ReLU that made it, the convolution that reads it) share one
packed copy. What a fused normalisation gave is not kept at all where asked: its input is, packed,
and the output is computed again from it.
"""

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from mest_fed.memory.activations.formats import AsIs, Packed, packable
from mest_fed.nn.norms import Normalised, watching

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
