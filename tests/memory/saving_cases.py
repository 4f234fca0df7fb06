"""Models to train with memory options, a step on them, and what came of it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mest_fed.memory import FORMATS, RECOMPUTE, MemoryOptions, memory_saving
from mest_fed.nn import build_model, sparsify

PAIRS = [(recompute, saved) for recompute in RECOMPUTE for saved in FORMATS]
LOSSLESS = [name for name, pack in FORMATS.items() if getattr(pack, "exact", False)]
EXACT_PAIRS = [(recompute, saved) for recompute, saved in PAIRS if saved in LOSSLESS]
INEXACT_PAIRS = [(recompute, saved) for recompute, saved in PAIRS if saved not in LOSSLESS]

IMAGE = (1, 8, 8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def resnet(scheme=None, norm="batch", width=0.25, image=IMAGE, name="resnet8"):
    """Return a ResNet: an identity shortcut first, then strides of 2 with projections."""
    net = build_model(name, image, 10, generator=generator(), width=width, norm=norm)
    # Scales and shifts as after some training: at 1 and 0 a sign that is lost would not show.
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator(1))
                module.bias.normal_(0, 0.3, generator=generator(2))
    return net if scheme is None else sparsify(net, scheme, 0.4)


def cnn2(scheme=None):
    net = build_model("cnn2", IMAGE, 10, generator=generator(), width=0.25)
    return net if scheme is None else sparsify(net, scheme, 0.4)


def users_own(scheme=None):
    """Return a model that declares nothing: torch's own norms and dropout, nested and not."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(4, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)),
        nn.Dropout2d(0.2),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.3)),
        nn.Flatten(),
        nn.Linear(72, 10),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.1, 0.3, generator=generator())
    return net if scheme is None else sparsify(net, scheme, 0.4)


SCHEMES = (None, "block", "unstructured", "pattern", "channel")
MODELS = {
    **{f"batch-{s}": lambda s=s: resnet(s, "batch") for s in SCHEMES},
    **{f"group-{s}": lambda s=s: resnet(s, "group") for s in SCHEMES},
    "cnn2-None": cnn2,
    "cnn2-block": lambda: cnn2("block"),
    "own-None": users_own,
    "own-unstructured": lambda: users_own("unstructured"),
}


@dataclass(frozen=True)
class Outcome:
    """What a backward pass left: the loss, all gradients, all buffers."""

    loss: float
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]

    def away_from(self, other):
        """Return |difference of the gradients| / |the other's|, all of them as one vector."""
        assert self.gradients.keys() == other.gradients.keys()
        ours, theirs = (flat(outcome.gradients) for outcome in (self, other))
        return float((ours - theirs).norm() / theirs.norm())


def flat(gradients):
    return torch.cat([g.double().flatten() for g in gradients.values() if g is not None])


def data(count=8, image=IMAGE, dtype=torch.float64, seed=5):
    images = torch.randn(count, *image, generator=generator(seed), dtype=dtype)
    return images, torch.randint(10, (count,), generator=generator(seed))


def gradients(net):
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def backward(net, memory, batch):
    """Go forward and back once in training mode; dropout draws from a seed of its own."""
    images, labels = batch
    net.train()
    with torch.random.fork_rng(devices=[]), memory_saving(net, memory) as forward:
        torch.manual_seed(3)
        loss = cross_entropy(forward(images), labels)
        loss.backward()
        # Whoever trains on draws next what it would have drawn.
        drawn = torch.rand(1).item()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    buffers["drawn"] = torch.tensor(drawn)
    return Outcome(loss.item(), gradients(net), buffers)


def train(case, recompute, saved, *, dtype=torch.float64, count=8):
    """Take a model of :data:`MODELS` through a backward pass."""
    net = MODELS[case]().to(dtype)
    return backward(net, MemoryOptions(recompute, saved), data(count, dtype=dtype))
