"""Small models, seeded without the global generator, and steps on them."""

import numpy as np
import torch
from torch import nn

from mest_fed.catalogue import MODELS
from mest_fed.nn import build_model, sparsify

SCHEMES = ("unstructured", "block", "block:3", "pattern", "channel")


#: Model -> shape of a small input, where it is no image.
SHAPES = {"dscnn": (1, 49, 10), "har1d": (6, 32), "transformer": (12,), "lstm": (12,)}


def input_of(name, count=2, seed=0):
    """Return a small input of a model; tokens are below 10."""
    shape = (count, *SHAPES.get(name, (3, 8, 8)))
    if len(shape) == 2:
        return torch.randint(10, shape, generator=generator(seed))
    return draw(*shape, seed=seed)


def small(name, seed=0, **options):
    """Build a model of the catalogue at a quarter of its width, with group normalisation."""
    if MODELS.takes(name, "norm"):
        options.setdefault("norm", "group")
    shape = SHAPES.get(name, (3, 8, 8))
    return build_model(name, shape, 10, generator=generator(seed), width=0.25, **options)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def seeded(model, seed=0):
    """Redraw all parameters of a module."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=source)
    return model


def small_resnet(scheme=None, density=0.25, distribution="uniform", norm="batch"):
    """Return ResNet-8 with 8 / 16 / 32 channels for 8x8 images, dense or sparse."""
    model = build_model("resnet8", (1, 8, 8), 10, generator=generator(), width=0.5, norm=norm)
    return model if scheme is None else sparsify(model, scheme, density, distribution)


def chain():
    """Return a stem, one sparsifiable convolution of 10 channels, and a classifier."""
    return seeded(
        nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 10, 3), nn.Flatten(), nn.Linear(40, 3)
        )
    )


def train_step(model, optimizer, x, labels):
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    return loss


def growth(seed=0):
    return lambda name: np.random.default_rng(seed)


def sparse_chain(scheme="unstructured", density=0.25):
    model = sparsify(chain(), scheme, density)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
