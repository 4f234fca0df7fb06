"""Minibatches as tensors; how they are made is :mod:`mest_fed.data.minibatches`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mest_fed.data.arrays import ArrayData
from mest_fed.data.minibatches import Array, Indices, Minibatches, Rows

_ALL = slice(None)


@dataclass(frozen=True, eq=False)
class Batch:
    """A minibatch.

    Parameters
    ----------
    inputs : Tensor or Rows
        float32, shape ``(n, ...)``: ``(value - mean) / std``, where a value of uint8 is in units
        of 255; or int64 tokens. :class:`Rows` makes parts of them when they are asked for.
    targets : Tensor
        int64 or float32, shape ``(n, ...)``.
    examples : int64 array
        Shape ``(n,)``: the position of each example among the client's own.
    """

    inputs: Tensor | Rows
    targets: Tensor
    examples: Indices

    def part(self, places: slice = _ALL) -> Tensor:
        """Return the inputs of some of its examples, all by default."""
        inputs = self.inputs
        if isinstance(inputs, Tensor):
            return inputs[places]
        return torch.from_numpy(inputs.make(places))

    @property
    def example(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of an input."""
        inputs = self.inputs
        if isinstance(inputs, Tensor):
            return tuple(inputs.shape[1:]), inputs.dtype
        return tuple(inputs.shape[1:]), torch.from_numpy(np.empty(0, inputs.dtype)).dtype


class Batches(Minibatches):
    """Minibatches of a client's examples as tensors; each iteration is one epoch.

    Parameters
    ----------
    data : ArrayData
        Examples of all clients; they keep their type until they are batched.
    indices, batch_size, **options
        As for :class:`Minibatches`.
    """

    def __init__(self, data: ArrayData, indices: Indices, batch_size: int, **options: Any) -> None:
        super().__init__(data.examples, indices, batch_size, **options)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches of one epoch."""
        return map(_whole, self.epoch())  # holds no batch while it makes the next one

    def in_parts(self) -> Iterator[Batch]:
        """Iterate over the batches of one epoch, whose inputs are made part by part."""
        return map(_in_parts, self.epoch())


def _whole(arrays: tuple[Rows, Array, Indices]) -> Batch:
    inputs, targets, examples = arrays
    return Batch(torch.from_numpy(inputs.make(_ALL)), torch.from_numpy(targets), examples)


def _in_parts(arrays: tuple[Rows, Array, Indices]) -> Batch:
    inputs, targets, examples = arrays
    return Batch(inputs, torch.from_numpy(targets), examples)
