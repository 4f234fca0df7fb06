"""Products of sparse layers as operators: one way for each storage of active weights.

Kernels that keep some of their taps are written as single weights, which the program's slots then
number: they increase with the layer's. Of whole channels a dense product over the active ones
remains.
"""

from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mest_fed.errors import InputError
from mest_fed.kernels import Channels, Kernels, Strips
from mest_fed.nn.capture_values import Capture, Value
from mest_fed.nn.layers import SparseLayer

Inputs = dict[str, Value | int | None]


class Product(NamedTuple):
    """What a sparse layer multiplies, and how.

    Parameters
    ----------
    operator : str
        ``conv2d`` or ``linear``.
    shape : tuple of int
        The dense weight's, as the operator takes it.
    how : dict
        Stride and padding.
    x : Value
        The input.
    bias : int or None
        Its buffer.
    """

    operator: str
    shape: tuple[int, ...]
    how: dict[str, Any]
    x: Value
    bias: int | None


def sparse_product(capture: Capture, layer: SparseLayer, name: str, product: Product) -> Value:
    """Add the operators of a sparse layer's product, and return its output.

    Raises
    ------
    InputError
        If the layer's scheme has none.
    """
    storage = layer.layout.storage
    if isinstance(storage, Channels):
        by_axis = _of_outputs if storage.axis == "out" else _of_inputs
        return by_axis(capture, layer, name, product)
    if isinstance(storage, Strips):
        rows, values = storage.rows, capture.held(layer.values, f"{name}.values")
        slots = capture.held(layer.slots, f"{name}.slots")
    else:
        rows = 1
        values, slots = _single_weights(capture, layer, name, storage, prod(product.shape[2:]))
    inputs: Inputs = {"x": product.x, "values": values, "slots": slots, "b": product.bias}
    how = {**product.how, "weight_shape": product.shape, "rows": rows}
    return capture.emit(f"sparse_{product.operator}", name, inputs, **how)


def weights_of_kernels(slots: Tensor, cells: tuple[tuple[int, ...], ...], taps: int) -> Tensor:
    """Return the flat position of each weight of kernels, increasing; -1 for those of slots of -1.

    Parameters
    ----------
    slots : Tensor
        Of kernels: kernel * variants + variant, increasing, one variant a kernel.
    cells : tuple of tuple of int
        Kept taps of each variant, increasing.
    taps : int
        Taps of a kernel.
    """
    kept = torch.tensor(cells, device=slots.device)[slots % len(cells)]
    positions = (slots // len(cells) * taps).unsqueeze(1) + kept
    return positions.masked_fill(slots.unsqueeze(1) < 0, -1).flatten().int()


def _single_weights(
    capture: Capture, layer: SparseLayer, name: str, storage: Kernels, taps: int
) -> tuple[int, int]:
    """Return the buffers of kernels' weights as strips of one row, and of their slots."""
    if any(list(it) != sorted(set(it)) for it in storage.cells):
        raise InputError("a scheme whose cells do not increase has no operator")
    count = layer.values.numel()
    make = partial(weights_of_kernels, cells=storage.cells, taps=taps)
    return (
        capture.held(layer.values, f"{name}.values", (count, 1)),
        capture.held(layer.slots, f"{name}.slots", (count,), make),
    )


def _of_outputs(capture: Capture, layer: SparseLayer, name: str, product: Product) -> Value:
    active, every = len(layer.slots), product.shape[0]
    weight = capture.held(layer.values, f"{name}.values", (active, *product.shape[1:]))
    part = capture.emit(
        product.operator, f"{name}:active", {"x": product.x, "w": weight}, **_dense(product)
    )
    slots = capture.held(layer.slots, f"{name}.slots")
    placed: Inputs = {"x": part, "slots": slots, "b": product.bias}
    return capture.emit("place_channels", name, placed, channels=every)


def _of_inputs(capture: Capture, layer: SparseLayer, name: str, product: Product) -> Value:
    active, (outputs, _, *kernel) = len(layer.slots), product.shape
    slots = capture.held(layer.slots, f"{name}.slots")
    part = capture.emit("take_channels", f"{name}:active", {"x": product.x, "slots": slots})
    values = capture.held(layer.values, f"{name}.values", (active, outputs, *kernel))
    weight = capture.emit("transpose", f"{name}:weight", {"x": values}, axes=(0, 1))
    inputs: Inputs = {"x": part, "w": weight, "b": product.bias}
    return capture.emit(product.operator, name, inputs, **_dense(product))


def _dense(product: Product) -> dict[str, Any]:
    return {**product.how, "groups": 1} if product.operator == "conv2d" else {}
