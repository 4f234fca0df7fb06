"""Bring in what the first compiled step of a process brings in, before its memory is measured."""

import numpy as np
import torch

from mest_fed.data import Batch
from mest_fed.nn import Sparsity, build_model
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.rng import numpy_generator, torch_generator
from mest_fed.training.compiled_trainer import CompiledTrainer
from mest_fed.training.programs import Programs

_IMAGE, _IMAGES, _CLASSES, _WIDTH = (3, 8, 8), 4, 2, 0.5


def warm_up_programs(scheme: str | None = "block") -> None:
    """Train two small models for two compiled steps; nothing comes of it.

    Parameters
    ----------
    scheme : str or None
        Of the sparse layers; None for dense models.
    """
    images = torch.zeros(_IMAGES, *_IMAGE)
    batch = Batch(images, torch.zeros(_IMAGES, dtype=torch.int64), np.arange(_IMAGES))
    sparsity = None if scheme is None else Sparsity(scheme, 0.1)
    for norm in ("batch", "group"):
        model = build_model(
            "resnet8",
            _IMAGE,
            _CLASSES,
            generator=torch_generator(0, "warm-up"),
            width=_WIDTH,
            norm=norm,
            sparsity=sparsity,
        )
        settings = OptimizerSettings()
        trainer = CompiledTrainer(
            model,
            settings.build(model),
            micro_batch=_IMAGES,
            programs=Programs(model),
            settings=settings,
            rng=numpy_generator(0, "warm-up"),
        )
        trainer.fit([batch, batch])
