"""What training loads when it first happens: code of libraries, which is no part of its memory."""

import torch
from torch.nn.functional import cross_entropy

from mest_fed.memory.activations import FORMATS, RECOMPUTE, MemoryOptions, memory_saving
from mest_fed.nn import Sparsity, build_model
from mest_fed.nn.optimizers import SGD
from mest_fed.rng import torch_generator

_IMAGE, _IMAGES, _CLASSES = (3, 8, 8), 4, 2
#: So wide that a shortcut is computed by torch's own convolution, too.
_WIDTH = 4.0


def warm_up(scheme: str | None = "block") -> None:
    """Train two small models for a step under each way to save memory; nothing comes of it.

    Parameters
    ----------
    scheme : str or None
        Of the sparse layers; None for dense models.
    """
    images = torch.zeros(_IMAGES, *_IMAGE)
    labels = torch.zeros(_IMAGES, dtype=torch.int64)
    for norm in ("batch", "group"):
        generator = torch_generator(0, "warm-up")
        sparsity = None if scheme is None else Sparsity(scheme, 0.05)
        model = build_model(
            "resnet8",
            _IMAGE,
            _CLASSES,
            generator=generator,
            width=_WIDTH,
            norm=norm,
            sparsity=sparsity,
        ).train()
        for recompute, saved in zip(RECOMPUTE * 2, FORMATS, strict=False):
            memory = MemoryOptions(recompute, saved, release_gradients=recompute == "segments")
            optimizer = SGD(
                model.parameters(), 0.1, momentum=0.9, release_gradients=memory.release_gradients
            )
            with memory_saving(model, memory) as forward:
                optimizer.zero_grad()
                cross_entropy(forward(images), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            optimizer.close()
