"""Which segments treat each image by itself, so that a batch may be cut between any two images.

That is known of modules of exactly the types listed here, with nothing hooked to them. Any other
module may mix images: a sum over a batch, statistics of it, attention between its rows, an order
of dimensions with time first. So it is taken to mix them, and is run on the whole batch. Modules
that draw (dropout) are not listed either: drawn a few images at a time they would draw other
numbers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mest_fed.memory.activations.segments import Segment
from mest_fed.nn import SparseConv1d, SparseConv2d, SparseLayer, SparseLinear
from mest_fed.nn.dense import Conv2d, ReLUMaxPool2d
from mest_fed.nn.identity import Values
from mest_fed.nn.models.cnn import CNN2
from mest_fed.nn.models.resnet import ResidualBlock, ResNet
from mest_fed.nn.norms import GroupNorm


class Rows(NamedTuple):
    """What is known of an activation on its way through modules that keep images apart.

    Parameters
    ----------
    dims : int
        Dimensions, images first.
    own : bool
        Whether its memory is the segment's own, so that it may be overwritten.
    """

    dims: int
    own: bool


#: Says what leaves a module for what enters; None where images might be mixed.
Rule = Callable[[Any, Rows], Rows | None]


def maps_rows(segment: Segment, x: Tensor) -> bool:
    """Whether a segment maps each image of ``x`` by itself, and draws nothing."""
    if type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided or x.dim() < 2:
        return False
    entering = Rows(x.dim(), own=False)
    for method, path in _METHODS.items():
        if segment.computes(method):
            leaving = _through(path(segment.module), entering)
            break
    else:
        # Hooks of the segment's own module run before and after it, not within.
        known = segment.computes(type(segment.module).forward)
        known = known and not _holds_computed_weights(segment.module)
        leaving = _after(segment.module, entering) if known else None
    return leaving is not None and leaving.own


def is_plain(module: nn.Module) -> bool:
    """Whether a module within a segment computes what its class says, from parameters of its own.

    Hooks, methods of the instance (``forward`` and what it calls) and tensors in the place of
    parameters may change that.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return (
        not any(hooks)
        and not any(
            callable(held) and hasattr(type(module), name) for name, held in vars(module).items()
        )
        and all(type(p) in _PARAMETERS for p in module._parameters.values() if p is not None)
        and not _holds_computed_weights(module)
    )


def keeps_no_state(module: nn.Module) -> bool:
    """Whether a module is known to change nothing of itself, whether or not it is training."""
    stateless = isinstance(module, SparseLayer) or not any(
        buffer is not None for buffer in module._buffers.values()
    )
    return stateless and type(module) in _RULES and is_plain(module)


_PARAMETERS = (nn.Parameter, Values)


def _holds_computed_weights(module: nn.Module) -> bool:
    """Whether gradients flow through an attribute, as in weight normalisation by a hook."""
    held = (*vars(module).values(), *module._buffers.values())
    return any(isinstance(value, Tensor) and value.requires_grad for value in held)


def _through(modules: Any, rows: Rows) -> Rows | None:
    """Follow an activation through modules that are called one after the other."""
    for module in modules:
        leaving = _after(module, rows) if is_plain(module) else None
        if leaving is None:
            return None
        rows = leaving
    return rows


def _after(module: nn.Module, rows: Rows) -> Rows | None:
    rule = _RULES.get(type(module))
    return None if rule is None else rule(module, rows)


def _sequential(module: nn.Sequential, rows: Rows) -> Rows | None:
    return _through(module, rows)


def _of_rank(rank: int) -> Rule:
    """Modules that take one dimension less for a single image."""
    return lambda _, rows: Rows(rank, own=True) if rows.dims == rank else None


def _pooling(rank: int) -> Rule:
    def rule(module: Any, rows: Rows) -> Rows | None:
        pairs = getattr(module, "return_indices", False)
        return None if pairs or rows.dims != rank else Rows(rank, own=True)

    return rule


def _instance_norm(rank: int) -> Rule:
    def rule(module: Any, rows: Rows) -> Rows | None:
        tracks = module.track_running_stats
        return None if tracks or rows.dims != rank else Rows(rank, own=True)

    return rule


def _last_dims(module: nn.LayerNorm, rows: Rows) -> Rows | None:
    return Rows(rows.dims, own=True) if rows.dims > len(module.normalized_shape) else None


def _elementwise(module: nn.Module, rows: Rows) -> Rows | None:
    if getattr(module, "inplace", False) and not rows.own:
        return None  # the input of a segment is not its own to overwrite
    return Rows(rows.dims, own=True)


def _matrix(_: nn.Module, rows: Rows) -> Rows | None:
    return Rows(rows.dims, own=True) if rows.dims >= 2 else None


def _along_dim(module: Any, rows: Rows) -> Rows | None:
    if module.dim is None or module.dim % rows.dims == 0:
        return None
    return Rows(rows.dims, own=True)


def _flatten(module: nn.Flatten, rows: Rows) -> Rows | None:
    start, end = module.start_dim % rows.dims, module.end_dim % rows.dims
    return None if start == 0 else Rows(rows.dims - max(0, end - start), rows.own)


def _residual_block(block: ResidualBlock, rows: Rows) -> Rows | None:
    main = _through((block.conv1, block.norm1, block.conv2, block.norm2), rows)
    return None if _through((block.shortcut,), rows) is None else main


_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
)

_RULES: dict[type[nn.Module], Rule] = {
    nn.Sequential: _sequential,
    nn.Identity: lambda _, rows: rows,
    **dict.fromkeys((nn.Linear, SparseLinear, nn.GroupNorm, GroupNorm, nn.PReLU), _matrix),
    **dict.fromkeys((nn.Conv2d, Conv2d, SparseConv2d, nn.ConvTranspose2d), _of_rank(4)),
    **dict.fromkeys((nn.Conv1d, SparseConv1d, nn.ConvTranspose1d), _of_rank(3)),
    **dict.fromkeys((nn.Conv3d, nn.ConvTranspose3d), _of_rank(5)),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d, ReLUMaxPool2d), _pooling(4)),
    **dict.fromkeys((nn.MaxPool2d, nn.AdaptiveMaxPool2d), _pooling(4)),
    **dict.fromkeys((nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.MaxPool1d), _pooling(3)),
    **dict.fromkeys((nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.MaxPool3d), _pooling(5)),
    nn.InstanceNorm1d: _instance_norm(3),
    nn.InstanceNorm2d: _instance_norm(4),
    nn.InstanceNorm3d: _instance_norm(5),
    nn.LayerNorm: _last_dims,
    **dict.fromkeys(_ACTIVATIONS, _elementwise),
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax, nn.GLU), _along_dim),
    nn.Flatten: _flatten,
    ResidualBlock: _residual_block,
}

#: Methods of our models that are segments, and the modules that they call in turn.
_METHODS: dict[Callable[..., Any], Callable[[Any], Any]] = {
    ResNet.stem: lambda net: (net.conv1, net.norm1),
    CNN2.features: lambda net: (net.conv1, net.relu, net.conv2, net.relu_pool),
}
