"""Examples in memory: arrays of any shape and type, and a data set's two parts."""

import importlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mest_fed.data.minibatches import Examples, Indices
from mest_fed.errors import InputError

if TYPE_CHECKING:
    from mest_fed.data.encoding import Encoding

#: Examples that are read at a time only to have their pages mapped.
_TOUCHED = 64


@dataclass(frozen=True)
class ExampleSpec:
    """What a model gets and gives for one example.

    Parameters
    ----------
    input_shape : tuple of int
        Of one input, such as (channels, height, width), (features,) or (length,).
    num_outputs : int
        Classes, numbers to predict, or tokens of the vocabulary.
    input_dtype : torch.dtype
        As the model gets inputs: float32, or int64 for tokens.
    target_shape : tuple of int
        Of one target: () for a class, (k,) for k numbers, (length,) for the next tokens.
    target_dtype : torch.dtype
        int64 for classes and tokens, float32 for numbers.
    num_tokens : int or None
        Size of the vocabulary where inputs are tokens.
    """

    input_shape: tuple[int, ...]
    num_outputs: int
    input_dtype: torch.dtype = torch.float32
    target_shape: tuple[int, ...] = ()
    target_dtype: torch.dtype = torch.int64
    num_tokens: int | None = None

    def zeros(self, count: int) -> Tensor:
        """Return so many inputs, all zero."""
        return torch.zeros(count, *self.input_shape, dtype=self.input_dtype)


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Examples with their targets.

    Parameters
    ----------
    inputs : Tensor
        Shape ``(n, ...)``: uint8 (images, for example), float32 (features, series) or int64
        (tokens). They may be pages of a file that processes share: read them only.
    targets : Tensor
        int64 of shape ``(n,)``: classes in ``range(num_classes)``; int64 of shape
        ``(n, length)``: tokens; float32 of shape ``(n, k)``: numbers, or 0 and 1 where each
        example may have several labels.
    num_classes : int or None
        Number of classes or tokens to predict; None where targets are numbers.
    mean, std : tuple of float
        What a batch is normalised by: one number for each index of the inputs' second dimension
        (channel or feature), in units of 255 for uint8. Empty: inputs stay as they are.
    groups : Tensor, optional
        int64 of shape ``(n,)``: whose example it is, such as a person, counted from 0.
    num_tokens : int, optional
        Size of the vocabulary where inputs are tokens.
    """

    inputs: Tensor
    targets: Tensor
    num_classes: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    groups: Tensor | None = None
    num_tokens: int | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.targets)

    def touch(self, examples: Indices) -> None:
        """Read inputs once, so that their pages are there where they are pages of a file."""
        for start in range(0, len(examples), _TOUCHED):
            self.inputs[torch.from_numpy(examples[start : start + _TOUCHED])]

    @property
    def examples(self) -> Examples:
        """The same memory as NumPy arrays, as batches are made of it."""
        return Examples(self.inputs.numpy(), self.targets.numpy(), self.mean, self.std)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    @property
    def example(self) -> ExampleSpec:
        """Shapes and types of one example, as a model meets it."""
        shape = tuple(self.targets.shape[1:])
        outputs = math.prod(shape) if self.num_classes is None else self.num_classes
        dtype = self.inputs.dtype
        return ExampleSpec(
            self.input_shape,
            outputs,
            torch.float32 if dtype == torch.uint8 else dtype,
            shape,
            self.targets.dtype,
            self.num_tokens,
        )

    @property
    def classes(self) -> Indices | None:
        """The class of each example, int64 of shape ``(n,)``; None where targets are no classes."""
        if self.num_classes is None or self.targets.dim() != 1:
            return None
        return self.targets.numpy()

    def take(self, rows: Indices) -> "ArrayData":
        """Copy some examples."""
        chosen = torch.from_numpy(rows)
        groups = None if self.groups is None else self.groups[chosen]
        return replace(
            self, inputs=self.inputs[chosen], targets=self.targets[chosen], groups=groups
        )


@dataclass(frozen=True, eq=False)
class DataSplit:
    """A data set: what the clients share out among them, and the central test set.

    Parameters
    ----------
    train, test : ArrayData
        Of one shape and type.
    reloads : bool
        Whether each process of a machine loads it quickly by itself, since it comes from a small
        file or from pages of the cache that all of them share. Other data is loaded once and
        given to worker processes in shared memory.
    encoding : Encoding or None
        How other examples of this kind, such as a device's own, become numbers as these did.
    """

    train: ArrayData
    test: ArrayData
    reloads: bool = False
    encoding: "Encoding | None" = None


def require(module: str, *, extra: str) -> Any:
    """Import a module of an optional library, as late as possible.

    Raises
    ------
    InputError
        If the library is not installed; the text says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; install it with: pip install 'mest-fed[{extra}]'"
        ) from error
