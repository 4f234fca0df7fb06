"""Make the programs by which devices are calibrated; they are kept in the package.

    python -m mest_fed.training.calibration_programs

writes the file that ``mest_fed/devices/calibration/steps.py`` reads, where torch is not.
"""

import gzip
import json
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mest_fed.devices.calibration
from mest_fed.devices.calibration.steps import CASES, PROGRAMS, Case
from mest_fed.nn import build_model, sparsify
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.rng import torch_generator
from mest_fed.runtime.sizes import second_size
from mest_fed.training.step_program import StepPrograms
from mest_fed.training.tasks import Classification

_CLASSES, _CHANNELS, _NORMS = 10, 16, 6


def calibration_programs() -> dict[str, list[dict[str, Any]]]:
    """Return two sizes of the program of each case as plain values, by the cases' names."""
    return {case.name: _programs(case) for case in CASES}


def _programs(case: Case) -> list[dict[str, Any]]:
    make = StepPrograms(
        _model(case).train(),
        (case.shape, torch.float32),
        Classification(),
        OptimizerSettings(1.0, momentum=0.9, weight_decay=1e-4),
    )
    return [make(size).as_table() for size in (case.group, second_size(case.group))]


def _model(case: Case) -> nn.Module:
    generator = torch_generator(0, case.model)
    if case.model == "norms":
        return _norms(case.shape[0])
    options: dict[str, Any] = {"norm": "group"} if case.model.startswith("resnet") else {}
    model = build_model(case.model, case.shape, _CLASSES, generator=generator, **options)
    if case.scheme != "dense":
        sparsify(model, case.scheme, case.density)
    return model


def _norms(channels: int) -> nn.Module:
    """Return a model whose steps move bytes, most of them without products."""
    pairs = [(nn.GroupNorm(4, _CHANNELS), nn.ReLU()) for _ in range(_NORMS)]
    return nn.Sequential(
        nn.Conv2d(channels, _CHANNELS, 3, padding=1),
        *chain.from_iterable(pairs),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(_CHANNELS, _CLASSES),
    )


def main() -> None:
    """Write the file."""
    text = json.dumps(calibration_programs(), sort_keys=True, separators=(",", ":"))
    path = Path(mest_fed.devices.calibration.__path__[0]) / PROGRAMS
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
