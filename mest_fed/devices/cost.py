"""Time and energy that work and traffic cost on a device. All figures are modelled."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mest_fed.catalogue import Recompute
from mest_fed.devices.profile import DeviceProfile
from mest_fed.errors import not_allowed
from mest_fed.memory import MemoryOptions
from mest_fed.memory.activations import batch_norm_block, batch_norm_stem, segments_of
from mest_fed.nn import SparseAttention, SparseLayer
from mest_fed.sparsity import base_scheme


@dataclass(frozen=True)
class Work:
    """Floating-point operations, 2 for each multiply-add, of active weights only.

    Parameters
    ----------
    dense_flops : float
        Operations of dense layers.
    sparse_flops : float
        Operations of sparse layers.
    """

    dense_flops: float
    sparse_flops: float

    def __mul__(self, times: float) -> "Work":
        """Return the work of doing this several times, as for several images."""
        return Work(self.dense_flops * times, self.sparse_flops * times)


def train_seconds(profile: DeviceProfile, work: Work, scheme: str) -> float:
    """Return how long the device takes for work (modelled).

    Parameters
    ----------
    profile : DeviceProfile
        The device.
    work : Work
        What is computed.
    scheme : str
        Scheme of the sparse layers, for example ``block:8``.

    Raises
    ------
    InputError
        If the profile has no rate for the scheme.
    """
    sparse = rate_of(profile, scheme)
    return work.dense_flops / profile.flops["dense"] + work.sparse_flops / sparse


def rate_of(profile: DeviceProfile, scheme: str) -> float:
    """Return how many operations of sparse layers a device does a second (modelled).

    Raises
    ------
    InputError
        If the profile has no rate for the scheme.
    """
    kind = scheme if scheme in profile.flops else base_scheme(scheme)
    if kind not in profile.flops:
        raise not_allowed("scheme", scheme, profile.flops)
    return profile.flops[kind]


def download_seconds(profile: DeviceProfile, num_bytes: float) -> float:
    """Return how long the device takes to receive bytes: latency + bytes / rate (modelled)."""
    return profile.latency + num_bytes / profile.download_rate


def upload_seconds(profile: DeviceProfile, num_bytes: float) -> float:
    """Return how long the device takes to send bytes: latency + bytes / rate (modelled)."""
    return profile.latency + num_bytes / profile.upload_rate


def energy_joules(
    profile: DeviceProfile,
    compute_seconds: float,
    radio_seconds: float,
    *,
    idle_seconds: float = 0.0,
) -> float:
    """Return the energy that the whole device draws while it computes, transfers and waits.

    Modelled: power times time of each.
    """
    return (
        profile.compute_watts * compute_seconds
        + profile.radio_watts * radio_seconds
        + profile.idle_watts * idle_seconds
    )


_COUNTED = (
    *(SparseLayer, nn.Conv1d, nn.Conv2d, nn.Linear),
    *(nn.MultiheadAttention, nn.RNNBase),
)


def forward_flops(
    model: nn.Module, input_shape: tuple[int, ...], input_dtype: torch.dtype | None = None
) -> Work:
    """Count the operations of one example's forward pass, 2 for each multiply-add.

    Parameters
    ----------
    model : nn.Module
        Dense or sparse; run once on an input of zeros in evaluation mode, and left as it was. It
        may be a model on torch's meta device: then how many granules are active decides, not which.
    input_shape : tuple of int
        Of one input, such as (channels, height, width).
    input_dtype : torch.dtype, optional
        Of the inputs, such as int64 for tokens; by default that of the parameters.
    """
    return _work(_calls(model, input_shape, input_dtype))


def training_flops(
    model: nn.Module,
    input_shape: tuple[int, ...],
    input_dtype: torch.dtype | None = None,
    *,
    forwards: Mapping[nn.Module, int] | None = None,
    frozen: Collection[nn.Module] = (),
) -> Work:
    """Count the operations of one example's training step: forward and both backward passes.

    Each backward pass costs what a forward pass does. The first layer needs no gradient of its
    input.

    Parameters
    ----------
    model, input_shape, input_dtype
        As for :func:`forward_flops`.
    forwards : mapping of nn.Module to int, optional
        Forward passes that a layer makes in a step, where it is not one: backward may compute
        activations again.
    frozen : collection of nn.Module
        Layers that go forward once, and never backward.
    """
    calls = _calls(model, input_shape, input_dtype)
    forwards = forwards or {}
    trained = [layer for layer, _ in calls if layer not in frozen]
    passes = {layer: forwards.get(layer, 1) + 2 for layer in trained}
    if trained:
        passes[trained[0]] -= 1
    return _work([(layer, flops * passes.get(layer, 1)) for layer, flops in calls])


def _work(calls: list[tuple[nn.Module, int]]) -> Work:
    sparse = sum(flops for layer, flops in calls if isinstance(layer, SparseLayer))
    return Work(float(sum(flops for _, flops in calls) - sparse), float(sparse))


def _calls(
    model: nn.Module, input_shape: tuple[int, ...], input_dtype: torch.dtype | None
) -> list[tuple[nn.Module, int]]:
    """Run an input of zeros and list each call of a counted layer with its operations."""
    calls: list[tuple[nn.Module, int]] = []

    def count(layer: nn.Module, _inputs: Any, output: Any) -> None:
        weights, channels = _active_weights(layer)
        output = output[0] if isinstance(output, tuple) else output
        calls.append((layer, 2 * weights * (output.numel() // channels)))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, _COUNTED)]
    modes = {module: module.training for module in model.modules()}
    parameter = next(model.parameters(), torch.empty(0))
    dtype = input_dtype or parameter.dtype
    example = torch.zeros(1, *input_shape, dtype=dtype, device=parameter.device)
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return calls


def _active_weights(layer: nn.Module) -> tuple[int, int]:
    """Return active weights and output channels; each weight is used once an output position."""
    if isinstance(layer, SparseLayer):
        return layer.active_weights, layer.layout.shape[0]
    if isinstance(layer, nn.MultiheadAttention):
        # Dense projections: its own, and in torch's attention the last one, which is not called.
        own = layer.parameters(recurse=not isinstance(layer, SparseAttention))
        return sum(it.numel() for it in own if it.dim() == 2), layer.embed_dim
    if isinstance(layer, nn.RNNBase):
        outputs = (layer.proj_size or layer.hidden_size) * (1 + layer.bidirectional)
        return sum(it.numel() for it in layer.parameters() if it.dim() == 2), outputs
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
    return layer.weight.numel(), layer.weight.shape[0]


def training_work(
    model: nn.Module,
    input_shape: tuple[int, ...],
    memory: MemoryOptions | None = None,
    input_dtype: torch.dtype | None = None,
) -> Work:
    """Return the operations of training a model on one example.

    Counted are convolutions, linear and recurrent layers, and attention's projections. Computing
    normalisations again, packing what is kept and small micro-batches cost time as well, and no
    operations that are counted.

    Parameters
    ----------
    model, input_shape, input_dtype
        As for :func:`forward_flops`.
    memory : MemoryOptions, optional
        What is computed again, and what is frozen; nothing by default.
    """
    memory = memory or MemoryOptions()
    frozen = {m for s in segments_of(model, memory.segments)[: memory.frozen] for m in s.modules()}
    return training_flops(
        model, input_shape, input_dtype, forwards=_forward_passes(model, memory), frozen=frozen
    )


def _forward_passes(model: nn.Module, memory: MemoryOptions) -> dict[nn.Module, int]:
    """Count how often each layer of a recomputed segment goes forward."""
    passes: dict[nn.Module, int] = {}
    if memory.recompute != Recompute.SEGMENTS:
        return passes
    for segment in segments_of(model, memory.segments)[memory.frozen :]:
        passes |= dict.fromkeys(segment.modules(), 2)
        by_hand: dict[str, int] = {}
        if batch_norm_block.handles(segment):
            by_hand = batch_norm_block.FORWARDS
        elif batch_norm_stem.handles(segment):
            by_hand = batch_norm_stem.FORWARDS
        children = dict(segment.module.named_modules())
        passes |= {children[name]: times for name, times in by_hand.items() if name in children}
    return passes
