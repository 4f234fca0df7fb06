"""What a trace computes with in place of tensors: buffers of a program in the making."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mest_fed.errors import InputError
from mest_fed.runtime.build import Builder

Shape = tuple[int, ...]


class Value(NamedTuple):
    """A buffer as a step of the trace sees it.

    ``shape`` may have fewer rows than the buffer: the first rows of a parameter, as a slice gives
    them.
    """

    number: int
    shape: Shape


class Capture:
    """A forward program in the making.

    Parameters
    ----------
    model : nn.Module
        What is captured.
    training : bool
        Whether as a training step, or as an evaluation.
    """

    def __init__(self, model: nn.Module, *, training: bool = True) -> None:
        self.model = model
        self.training = training
        self.builder = Builder()
        #: Name of a parameter or state -> the tensor whose values it holds.
        self.tensors: dict[str, Tensor] = {}
        #: Name of one that holds something else -> what makes it of the tensor.
        self.computed: dict[str, Callable[[Tensor], Tensor]] = {}
        self._known: dict[tuple[int, Shape, str], int] = {}

    def held(
        self,
        tensor: Tensor,
        name: str,
        shape: Sequence[int] | None = None,
        make: Callable[[Tensor], Tensor] | None = None,
    ) -> int:
        """Return the buffer of a parameter or buffer of the model; a shared tensor has one.

        Parameters
        ----------
        tensor : Tensor
            What it holds.
        name : str
            As in a ``state_dict``.
        shape : sequence of int, optional
            As which the operator reads it, if not its own.
        make : callable, optional
            Makes of the tensor what the buffer holds.
        """
        shape = tuple(tensor.shape if shape is None else shape)
        # Layers of one mask may hold one tensor of slots, or equal ones: the program is the same.
        slots = name if tensor.dtype == torch.int32 else ""
        key = id(tensor), shape, slots
        if key not in self._known:
            role = "parameter" if isinstance(tensor, nn.Parameter) else "state"
            dtype = str(tensor.dtype).removeprefix("torch.")
            number = self.builder.buffer(name, shape, dtype, role)
            self._known[key] = number
            unique = self.builder.buffers[number].name
            self.tensors[unique] = tensor
            if make is not None:
                self.computed[unique] = make
        return self._known[key]

    def emit(
        self, name: str, label: str, inputs: dict[str, Value | int | None], **attributes: Any
    ) -> Value:
        """Add an operator and return its first output.

        Parameters
        ----------
        name, label, **attributes
            As for :meth:`~mest_fed.runtime.build.Builder.operator`.
        inputs : dict
            Values, or numbers of buffers.
        """
        return self.emit_all(name, label, inputs, **attributes)[0]

    def emit_all(
        self, name: str, label: str, inputs: dict[str, Value | int | None], **attributes: Any
    ) -> list[Value]:
        """Add an operator and return all outputs."""
        given = {it: self._number(value, name) for it, value in inputs.items()}
        numbers = self.builder.operator(name, given, {}, label, **attributes)
        return [Value(it, self.builder.buffers[it].shape) for it in numbers if it >= 0]

    def reshape(self, x: Value, shape: Shape, label: str) -> Value:
        """Return a view of another shape; nothing is added where it has it already."""
        if x.shape == shape:
            return x
        source = {"x": self._number(x, "reshape")}
        (number,) = self.builder.operator("reshape", source, {"y": shape}, f"{label}:view")
        return Value(number, shape)

    def seed(self, label: str) -> int:
        """Return a new setting that holds the seed of a random operator."""
        return self.builder.buffer(f"{label}:seed", (1,), "int64", "setting")

    def _number(self, value: Value | int | None, name: str) -> int | None:
        if not isinstance(value, Value):
            return value
        whole = self.builder.buffers[value.number].shape
        if whole != value.shape:
            raise InputError(
                f"{name} reads {value.shape} of a buffer of {whole}; allowed: all of it"
            )
        return value.number


def dropped(capture: Capture, probability: float, name: str, x: Value) -> Value:
    """Return x with a dropout of its own seed; x itself where nothing is dropped."""
    if probability == 0:
        return x
    seed = capture.seed(name)
    return capture.emit("dropout", name, {"x": x, "seed": seed}, probability=float(probability))
