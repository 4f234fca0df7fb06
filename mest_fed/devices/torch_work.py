"""What a step by torch takes: operations of its layers, bytes of their outputs, calls. Modelled.

Operations are counted of convolutions, linear and recurrent layers, and attention's projections.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mest_fed.catalogue import Recompute
from mest_fed.devices.cost import StepWork, WeightSeconds, Work
from mest_fed.memory import MemoryOptions
from mest_fed.memory.activations import batch_norm_block, batch_norm_stem, segments_of
from mest_fed.nn import SparseAttention, SparseLayer

#: Bytes that a step moves for each value of a layer's output, forward and back.
BYTES_OF_OUTPUT = 95

_COUNTED = (
    *(SparseLayer, nn.Conv1d, nn.Conv2d, nn.Linear),
    *(nn.MultiheadAttention, nn.RNNBase),
)


#: Layers that cost torch more than the small ones, and those that cost nothing.
_LARGE = (
    *(nn.Conv1d, nn.Conv2d, nn.MultiheadAttention, nn.RNNBase),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm),
)
_FREE = (nn.Flatten, nn.Identity, nn.Dropout)


@dataclass(frozen=True)
class TorchSeconds(WeightSeconds):
    """Seconds of one core of the reference machine that a step by torch takes at any size.

    Parameters
    ----------
    single, strip
        As of :class:`WeightSeconds`.
    layer : float
        Of a convolution, norm or sparse layer in a micro-batch, forward and back.
    small_layer : float
        Of any other layer.
    step : float
        Of a step.
    parameter : float
        Of a parameter in a step.
    """

    layer: float = 4.2e-4
    small_layer: float = 1.2e-4
    step: float = 3e-4
    parameter: float = 3e-5


TORCH_SECONDS = TorchSeconds()


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

    counted = [module for module in model.modules() if isinstance(module, _COUNTED)]
    _run(model, input_shape, input_dtype, dict.fromkeys(counted, count))
    return calls


def _run(
    model: nn.Module,
    input_shape: tuple[int, ...],
    input_dtype: torch.dtype | None,
    hooks: Mapping[nn.Module, Callable[[nn.Module, Any, Any], None]],
) -> None:
    """Run an input of zeros through a model in evaluation mode, with hooks on its modules."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    modes = {module: module.training for module in model.modules()}
    parameter = next(model.parameters(), torch.empty(0))
    dtype = input_dtype or parameter.dtype
    example = torch.zeros(1, *input_shape, dtype=dtype, device=parameter.device)
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


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
    again, frozen = _forward_passes(model, memory), _frozen(model, memory)
    return training_flops(model, input_shape, input_dtype, forwards=again, frozen=frozen)


def _frozen(model: nn.Module, memory: MemoryOptions) -> set[nn.Module]:
    """Return the modules of the segments that do not train."""
    segments = segments_of(model, memory.segments)[: memory.frozen]
    return {module for segment in segments for module in segment.modules()}


def torch_step_work(
    model: nn.Module,
    input_shape: tuple[int, ...],
    memory: MemoryOptions | None = None,
    input_dtype: torch.dtype | None = None,
    *,
    seconds: TorchSeconds = TORCH_SECONDS,
) -> StepWork:
    """Return what a step by torch takes, by examples, micro-batches and steps.

    Parameters
    ----------
    model, input_shape, memory, input_dtype
        As for :func:`training_work`.
    seconds : TorchSeconds
        Other constants than those of the reference machine, to fit them.
    """
    outputs, in_layers, of_weights = 0.0, 0.0, 0.0
    memory = memory or MemoryOptions()
    forwards, frozen = _forward_passes(model, memory), _frozen(model, memory)

    def count(layer: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal outputs, in_layers, of_weights
        # As of operations, backward costs two passes; what is frozen goes forward alone.
        share = 1 / 3 if layer in frozen else (forwards.get(layer, 1) + 2) / 3
        outputs += share * (output[0] if isinstance(output, tuple) else output).numel()
        in_layers += share * _layer_seconds(layer, seconds)
        of_weights += share * _weight_seconds(layer, seconds)

    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    _run(model, input_shape, input_dtype, dict.fromkeys(leaves, count))
    parameters = sum(it.requires_grad for it in model.parameters())
    example = training_work(model, input_shape, memory, input_dtype)
    return StepWork(
        example=example + Work(moved_bytes=BYTES_OF_OUTPUT * outputs),
        group=Work(core_seconds=in_layers, gather_seconds=of_weights),
        step=Work(core_seconds=seconds.step + seconds.parameter * parameters),
    )


def _weight_seconds(layer: nn.Module, seconds: TorchSeconds) -> float:
    """Return what the places of a sparse linear layer's weights cost in each micro-batch."""
    if not isinstance(layer, SparseLayer) or len(layer.layout.shape) != 2:
        return 0.0
    return 3 * layer.active_weights * seconds.of_weight(layer.layout.width)


def _layer_seconds(layer: nn.Module, seconds: TorchSeconds) -> float:
    """Return what calls of a layer cost a core in each micro-batch."""
    if isinstance(layer, SparseLayer):
        return seconds.layer
    if isinstance(layer, _FREE):
        return 0.0
    return seconds.layer if isinstance(layer, _LARGE) else seconds.small_layer


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
