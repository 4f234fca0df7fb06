"""Minibatches as tensors; how they are made is :mod:`mest_fed.data.minibatches`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mest_fed.data.arrays import ArrayData
from mest_fed.data.minibatches import Array, Indices, Minibatches


@dataclass(frozen=True, eq=False)
class Batch:
    """A minibatch.

    Parameters
    ----------
    inputs : Tensor
        float32, shape ``(n, ...)``: ``(value - mean) / std``, where a value of uint8 is in units
        of 255; or int64 tokens.
    targets : Tensor
        int64 or float32, shape ``(n, ...)``.
    examples : int64 array
        Shape ``(n,)``: the position of each example among the client's own.
    """

    inputs: Tensor
    targets: Tensor
    examples: Indices


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
        return map(_as_tensors, self.epoch())  # holds no batch while it makes the next one


def _as_tensors(arrays: tuple[Array, Array, Indices]) -> Batch:
    inputs, targets, examples = arrays
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), examples)
