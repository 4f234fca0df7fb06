"""Floating-point operations of a model, counted layer by layer on live weights only.

Only convolutions and linear layers are counted; normalisation, activations and pooling are left
out, as is usual.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.devices.cost import Work
from mest_fed.nn import SparseLayer

_COUNTED = (SparseLayer, nn.Conv2d, nn.Linear)


def forward_flops(model: nn.Module, input_shape: tuple[int, int, int]) -> Work:
    """Count the operations of one image's forward pass, 2 for each multiply-add.

    Parameters
    ----------
    model : nn.Module
        Dense or sparse; run once on a zero image in evaluation mode, and left as it was. It may be
        a skeleton on torch's meta device: then how many granules live decides, not which.
    input_shape : tuple of int
        (channels, height, width) of an image.
    """
    return _work(_calls(model, input_shape))


def training_flops(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    forwards: Mapping[nn.Module, int] | None = None,
    frozen: Collection[nn.Module] = (),
) -> Work:
    """Count the operations of one image's training step: forward and both backward passes.

    Each backward pass costs what a forward pass does. The first layer needs no gradient of its
    input.

    Parameters
    ----------
    model, input_shape
        As for :func:`forward_flops`.
    forwards : mapping of nn.Module to int, optional
        Forward passes that a layer makes in a step, where it is not one: backward may compute
        activations again.
    frozen : collection of nn.Module
        Layers that go forward once, and never backward.
    """
    calls = _calls(model, input_shape)
    forwards = forwards or {}
    trained = [layer for layer, _ in calls if layer not in frozen]
    passes = {layer: forwards.get(layer, 1) + 2 for layer in trained}
    if trained:
        passes[trained[0]] -= 1
    return _work([(layer, flops * passes.get(layer, 1)) for layer, flops in calls])


def _work(calls: list[tuple[nn.Module, int]]) -> Work:
    sparse = sum(flops for layer, flops in calls if isinstance(layer, SparseLayer))
    return Work(float(sum(flops for _, flops in calls) - sparse), float(sparse))


def _calls(model: nn.Module, input_shape: tuple[int, int, int]) -> list[tuple[nn.Module, int]]:
    """Run one zero image and list each call of a counted layer with its operations."""
    calls: list[tuple[nn.Module, int]] = []

    def count(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        weights, channels = _live_weights(layer)
        calls.append((layer, 2 * weights * (output.numel() // channels)))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, _COUNTED)]
    modes = {module: module.training for module in model.modules()}
    parameter = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return calls


def _live_weights(layer: nn.Module) -> tuple[int, int]:
    """Return live weights and output channels; each weight is used once an output position."""
    if isinstance(layer, SparseLayer):
        return _live_in(layer), layer.layout.shape[0]
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer.weight.numel(), layer.weight.shape[0]


def _live_in(layer: SparseLayer) -> int:
    """Count live weights; of a skeleton's unknown granules, each is as large as the average one."""
    layout = layer.layout
    if not layer.slots.is_meta:
        return layout.live_weights(layer.slots)
    each = min(layout.width, layout.num_weights / layout.num_granules)
    return round(len(layer.slots) * each)
