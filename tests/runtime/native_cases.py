"""One operator in the native runtime, and what torch says of it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from torch import Tensor

from mest_fed.runtime.bfloat16 import numpy_type
from mest_fed.runtime.native import Runtime
from mest_fed.runtime.native_table import kinds
from mest_fed.runtime.planes import elements, size_of

SOME = settings(max_examples=20, deadline=None, derandomize=True)


@dataclass
class Buffer:
    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    role: str = "temporary"
    margin: int = 0


@dataclass
class Operator:
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Program:
    buffers: list[Buffer]
    operators: list[Operator]
    per_group = 0


def one(name, inputs, outputs, **attributes):
    """Return a program of one operator; inputs and outputs give shape or array by argument."""
    kind = kinds()[name]
    buffers, sides = [], []
    for side, given in ((kind.inputs, inputs), (kind.outputs, outputs)):
        numbers = []
        for argument in side:
            if given.get(argument.name) is None:
                numbers.append(-1)
                continue
            numbers.append(len(buffers))
            shape = given[argument.name]
            shape = tuple(shape if isinstance(shape, tuple) else shape.shape)
            buffers.append(Buffer(argument.name, shape, argument.dtype))
        sides.append(tuple(numbers))
    return Program(buffers, [Operator(name, *sides, attributes)])


def compute(name, inputs, outputs, over=None, margins=None, *, bf16=(), **attributes):
    """Run one operator with 1 to 4 threads; return what its arguments hold then, by name.

    Parameters
    ----------
    inputs : dict
        Tensor of each argument; None where it is absent.
    outputs : dict
        Shape of each, or a tensor that it holds before.
    over : dict, optional
        Output -> input in whose memory it lies.
    margins : dict, optional
        Margin of each argument that lies as planes.
    bf16 : sequence of str
        Those of them that are bfloat16.
    """
    program, over = one(name, inputs, outputs, **attributes), over or {}
    for it in program.buffers:
        it.margin = (margins or {}).get(it.name, 0)
        it.dtype = "bfloat16" if it.name in bf16 else it.dtype
    offsets, end = {}, 0
    places = {it.name: place for place, it in enumerate(program.buffers)}
    for it in program.buffers:
        if it.name not in over:
            offsets[places[it.name]] = end
            size = size_of(it.shape, it.margin) * np.dtype(numpy_type(it.dtype)).itemsize
            end += -(-size // 64) * 64
    for output, source in over.items():
        offsets[places[output]] = offsets[places[source]]
    results = []
    for threads in (1, 2, 3, 4):
        runtime = Runtime(program, offsets, end, threads=threads)
        runtime.arena[...] = 255  # NaN
        for it in program.buffers:
            before = inputs.get(it.name, outputs.get(it.name))
            if isinstance(before, Tensor):
                runtime.write(it.name, before.detach().numpy())
        runtime.run()
        results.append({it.name: runtime.read(it.name) for it in program.buffers})
        for number, it in enumerate(program.buffers):
            whole = runtime._whole(number).copy()
            elements(whole, it.shape, it.margin)[...] = 0
            assert not whole.any(), f"{it.name} has margins that are not zero"
    for result in results[1:]:
        for key, array in results[0].items():
            assert array.tobytes() == result[key].tobytes(), f"other bits of {key}"
    return {key: torch.from_numpy(array) for key, array in results[0].items()}


def near(got, exact, bound=2e-5):
    """Compare with what torch gives in float64, relative to its size."""
    exact = exact.detach().double()
    size = float(exact.abs().max()) + 1
    assert got.shape == exact.shape
    assert float((got.double() - exact).abs().max()) <= bound * size


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(y, dy, *leaves):
    """Return torch's gradients in float64."""
    return torch.autograd.grad(y, leaves, dy.double())


def wide(*tensors):
    """Return float64 copies that take gradients."""
    return [it.double().requires_grad_() for it in tensors]
