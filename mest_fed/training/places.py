"""Where a model holds what its programs compute in: tensors, or arrays that stand for them.

A program may have room for more active granules than a layer has at present, so that a mutation
needs no new one. It then computes in a longer array, whose end is zero, or -1 for slots; what the
tensor holds is written back before anyone else reads it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mest_fed.errors import InputError
from mest_fed.kernels import Channels
from mest_fed.nn.capture import Captured
from mest_fed.nn.identity import plain_tensors
from mest_fed.nn.layers import SparseLayer
from mest_fed.sparsity import Bounds

Array = NDArray[Any]


@dataclass(frozen=True)
class Place:
    """Where a model holds what a buffer of a program stands for.

    Parameters
    ----------
    buffer : str
        Name in the program.
    shape : tuple of int
        There.
    tensor : Tensor
        What the model had when the program was made.
    module, leaf : nn.Module or None, str
        Who has it, and under which name: a mutation may have put another in its place.
    make : callable, optional
        Makes of the tensor what the buffer holds, if that is something else.
    """

    buffer: str
    shape: tuple[int, ...]
    tensor: Tensor
    module: nn.Module | None = None
    leaf: str = ""
    make: Callable[[Tensor], Tensor] | None = None

    def find(self) -> Tensor:
        """Return the tensor that the model has at present."""
        found: Tensor = self.tensor if self.module is None else getattr(self.module, self.leaf)
        return found

    def array(self, copies: "Copies") -> Array:
        """Return memory in the buffer's shape: the tensor's own where it is as large."""
        tensor = self.find()
        if self.make is not None:
            return _longer(memory(self.make(tensor)).reshape(-1), self.shape)
        return copies.of(tensor, self.shape)


def check_alone(captured: Captured) -> None:
    """Refuse a program of which two buffers would change one tensor.

    Raises
    ------
    InputError
        If there is such a tensor.
    """
    changed = [id(it) for it in captured.tensors.values() if it.is_floating_point()]
    if len(set(changed)) < len(changed):
        raise InputError("a tensor that operators read in two shapes is not allowed in a program")


def places_of(model: nn.Module, captured: Captured) -> list[Place]:
    """Return where a model holds the parameters and states of its program.

    Raises
    ------
    InputError
        If a tensor cannot be bound: it stands for two buffers, or is no array in C order.
    """
    owners = {
        id(tensor): (module, leaf)
        for module in model.modules()
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    tensors = captured.tensors
    check_alone(captured)
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise InputError(f"{name!r} is not contiguous on the CPU: the model is no program")
    shapes = {it.name: it.shape for it in captured.program.buffers}
    found = []
    for name, tensor in tensors.items():
        module, leaf = owners.get(id(tensor), (None, ""))
        make = captured.computed.get(name)
        found.append(Place(name, shapes[name], tensor, module, leaf, make))
    return found


def memory(tensor: Tensor) -> Array:
    """Return a tensor's memory as an array."""
    with plain_tensors():
        array: Array = tensor.detach().numpy()
    return array


class Copies:
    """Arrays that stand for tensors in which a program cannot compute, until they are given back.

    A tensor is too short where a program has room for more, or of another type.
    """

    def __init__(self) -> None:
        self._made: dict[Tensor, Array] = {}

    def of(self, tensor: Tensor, shape: tuple[int, ...], dtype: str | None = None) -> Array:
        """Return the array of a tensor: its memory where that fits, else one copy for all.

        Parameters
        ----------
        tensor : Tensor
            Contiguous, of as many elements as ``shape``, or fewer rows.
        shape : tuple of int
            Of the array.
        dtype : str, optional
            Of the array, if not the tensor's.
        """
        own = memory(tensor)
        if own.size == prod(shape) and (dtype is None or own.dtype == dtype):
            return own.reshape(shape)
        if tensor not in self._made:
            self._made[tensor] = _longer(own, shape, dtype)
        return self._made[tensor]

    def give_back(self) -> None:
        """Write what was computed into the tensors, and forget the arrays."""
        for tensor, array in self._made.items():
            own = memory(tensor).reshape(-1)
            own[...] = array.reshape(-1)[: own.size]
        self._made = {}


def _longer(own: Array, shape: tuple[int, ...], dtype: str | None = None) -> Array:
    """Return a copy of an array with zeros behind it, or -1 for slots; itself if it is as long."""
    if own.size == prod(shape) and dtype is None:
        return own.reshape(shape)
    made = np.full(shape, -1 if own.dtype == np.int32 else 0, dtype or own.dtype)
    made.reshape(-1)[: own.size] = own.reshape(-1)
    return made


def capacities(model: nn.Module, room: float) -> dict[str, int]:
    """Return the granules for which each sparse layer's program has room, by the layer's name.

    Parameters
    ----------
    model : nn.Module
        As it is.
    room : float
        Most active granules of a layer that trains, as a multiple of its target.
    """
    return dict(_capacities(model, room))


def _capacities(model: nn.Module, room: float) -> Iterator[tuple[str, int]]:
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            count = len(layer.slots)
            # the channels between two layers are as many as there are active ones
            if layer.values.requires_grad and not isinstance(layer.layout.storage, Channels):
                most = Bounds(ceiling=room).ceiling_count(layer.target, layer.layout)
                count = max(count, most)
            yield name, count


def with_room(captured: Captured, model: nn.Module, most: Mapping[str, int]) -> Captured:
    """Return a forward program with room for more active granules of sparse layers.

    Parameters
    ----------
    captured : Captured
        Of the model.
    model : nn.Module
        As it was captured.
    most : mapping of str to int
        As :func:`capacities` gives them.
    """
    counts = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer) and most[name] != len(layer.slots):
            for tensor in (layer.values, layer.slots):
                counts[id(tensor)] = (most[name], len(layer.slots))
    held = {name: id(tensor) for name, tensor in captured.tensors.items()}
    program = captured.program
    buffers = []
    for buffer in program.buffers:
        if held.get(buffer.name) in counts:
            granules, active = counts[held[buffer.name]]
            rows = buffer.shape[0] // active * granules
            buffer = replace(buffer, shape=(rows, *buffer.shape[1:]))
        buffers.append(buffer)
    return replace(captured, program=replace(program, buffers=tuple(buffers)))
