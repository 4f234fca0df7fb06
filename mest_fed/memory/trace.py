"""What a model needs for training, read off two traced forward passes."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mest_fed.nn import ModelSpec, model_spec

#: Two sizes, to tell what grows with the batch from what does not.
_TRACED_IMAGES = (2, 3)


@dataclass(frozen=True)
class ModelTrace:
    """Sizes of a model, in bytes unless said otherwise. Traced, that is: modelled.

    Parameters
    ----------
    spec : ModelSpec
        The sparse layers and dense tensors.
    dense_parameters : int
        Parameters outside the sparse layers.
    buffers : int
        Running statistics and the like.
    saved_per_image : int
        What autograd keeps of one image between forward and backward.
    saved_once : int
        What it keeps whatever the number of images: statistics, weights in another order.
    largest_activation : int
        The largest single activation of one image.
    image : int
        One image as float32.
    """

    spec: ModelSpec
    dense_parameters: int
    buffers: int
    saved_per_image: int
    saved_once: int
    largest_activation: int
    image: int


def trace_model(model: nn.Module, input_shape: tuple[int, int, int]) -> ModelTrace:
    """Trace forward passes of a (sparse or dense) model in training mode.

    The model's buffers (running statistics) are left as they were.

    Parameters
    ----------
    model : nn.Module
        Maps (n, c, h, w) to logits.
    input_shape : tuple of int
        (channels, height, width) of an image.
    """
    few, more = (_saved(model, input_shape, images) for images in _TRACED_IMAGES)
    each = (more.total - few.total) // (_TRACED_IMAGES[1] - _TRACED_IMAGES[0])
    spec = model_spec(model)
    parameters = {name for name, _ in model.named_parameters()}
    sizes = {name: 4 * math.prod(shape) for name, shape in spec.dense.items()}
    return ModelTrace(
        spec=spec,
        dense_parameters=sum(size for name, size in sizes.items() if name in parameters),
        buffers=sum(size for name, size in sizes.items() if name not in parameters),
        saved_per_image=each,
        saved_once=max(0, few.total - _TRACED_IMAGES[0] * each),
        largest_activation=few.largest // _TRACED_IMAGES[0],
        image=4 * math.prod(input_shape),
    )


class _Saved(NamedTuple):
    """Bytes that a forward pass keeps, and those of the largest tensor among them."""

    total: int
    largest: int


def _saved(model: nn.Module, input_shape: tuple[int, int, int], images: int) -> _Saved:
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold its graph, and that the tensor

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    model.train()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(torch.zeros(images, *input_shape))
        # Held until here: a freed tensor's address could come back for another one.
        loss = nn.functional.cross_entropy(logits, torch.zeros(images, dtype=torch.int64))
    del loss
    model.train(was_training)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return _Saved(sum(saved.values()), max(saved.values(), default=0))
