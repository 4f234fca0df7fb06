"""Whole steps of the built-in models: what they are made of, and what they are given."""

import numpy as np
import torch

from mest_fed.nn import Sparsity
from mest_fed.nn.models import Architecture

RATE = 0.1
IMAGE, TOKENS = (3, 8, 8), (12,)
BLOCK, UNSTRUCTURED = Sparsity("block", 0.3), Sparsity("unstructured", 0.3)
#: Model, shape of an input, options, sparsity. Planes stay larger than one pixel where there are
#: norms: of one value a group the variance is rounding.
STEPS = {
    "resnet8": (IMAGE, {"width": 0.5, "norm": "group"}, None),
    "resnet8 block": (IMAGE, {"width": 0.5, "norm": "group"}, BLOCK),
    "resnet8 block:3": (IMAGE, {"width": 0.5, "norm": "group"}, Sparsity("block:3", 0.3)),
    "resnet8 unstructured": (IMAGE, {"width": 0.5, "norm": "group"}, UNSTRUCTURED),
    "resnet8 batch": (IMAGE, {"width": 0.5, "norm": "batch"}, BLOCK),
    "resnet18": ((3, 16, 16), {"width": 0.0625, "norm": "group"}, BLOCK),
    "resnet20": (IMAGE, {"width": 0.25, "norm": "group"}, UNSTRUCTURED),
    "resnet32": (IMAGE, {"width": 0.25, "norm": "group"}, BLOCK),
    "resnet50": ((3, 16, 16), {"width": 0.0625, "norm": "group"}, None),
    "cnn2": (IMAGE, {"width": 0.25}, BLOCK),
    "mobilenetv2": ((3, 16, 16), {"width": 0.125, "norm": "group"}, None),
    "dscnn": ((1, 20, 10), {"width": 0.25, "norm": "batch"}, UNSTRUCTURED),
    "mlp": ((3, 4), {"width": 0.1}, UNSTRUCTURED),
    "har1d": ((6, 33), {"width": 0.25, "norm": "group"}, BLOCK),
    "transformer": (TOKENS, {"width": 0.25}, BLOCK),
    "resnet8 pattern": (IMAGE, {"width": 0.5, "norm": "group"}, Sparsity("pattern", 0.3)),
    "cnn2 channel": (IMAGE, {"width": 0.25}, Sparsity("channel", 0.4)),
    "lstm": (TOKENS, {"width": 0.05, "depth": 2}, BLOCK),
    "lstm series": ((6, 9), {"width": 0.05}, None),
}
BATCH, CLASSES = 4, 10


def model_of(name, shape, options, sparsity, target_shape=()):
    options = dict(options)
    norm = options.pop("norm", None)
    width = options.pop("width")
    architecture = Architecture(
        name.split()[0], shape, CLASSES, width, norm, options, CLASSES, target_shape
    )
    return architecture.model(torch.Generator().manual_seed(0), sparsity).train()


def inputs_of(shape, target_shape=(), seed=0):
    rng = np.random.default_rng(seed)
    tokens = shape == TOKENS
    size = (BATCH, *shape)
    x = rng.integers(0, CLASSES, size) if tokens else rng.normal(size=size)
    targets = rng.integers(0, CLASSES, (BATCH, *target_shape))
    return {"input": x, "targets": targets, "rates": [RATE], "share": [1 / targets.size]}


def dtype_of(shape):
    return torch.int64 if shape == TOKENS else torch.float32


def distance(mine, theirs):
    """Return the largest difference of tensors by name, as a share of the largest number."""
    largest = max(float(np.abs(it).max()) for it in theirs.values())
    return max(float(np.abs(mine[name] - it).max()) for name, it in theirs.items()) / largest
