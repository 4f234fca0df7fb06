"""Predicted and measured peaks of compiled steps beside each other, for memory.py.

As memory_prediction.py does it: a clean process (this file as a program) measures all cases, each
in a forked child, as a client trains: a shell, a state written into it, two compiled steps.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from harness import Row
from memory_case import Case
from memory_process import CLASSES, IMAGE, Images

from mest_fed.data import Batch
from mest_fed.memory import (
    Footprint,
    MemoryOptions,
    ModelTrace,
    TrainingSetup,
    TrainingShape,
    footprint,
    trace_model,
)
from mest_fed.memory.meter import measure, warm_up
from mest_fed.nn import SparseState, Sparsity, build_model, build_shell, read_state, write_state
from mest_fed.rng import numpy_generator, torch_generator
from mest_fed.sparsity import build_method
from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT
from mest_fed.training import CLASSIFICATION, CompiledTrainer, OptimizerSettings
from mest_fed.training.planned_steps import StepCompiler
from mest_fed.training.programs import Programs

MODELS = (("resnet8", 1.0, "batch"), ("resnet8", 1.0, "group"), ("resnet32", 1.0, "batch"))
MODELS += (("resnet32", 1.0, "group"), ("resnet18", 0.25, "batch"), ("resnet18", 0.5, "group"))
MODELS += (("cnn2", 1.0, "group"),)
SCHEMES = (("block", 0.1), ("unstructured", 0.05), ("pattern", 0.1), ("channel", 0.2))
SCHEMES += (("dense", 1.0),)
#: Batch, micro-batch, optimizer, whether it keeps a momentum, memory options.
WAYS = (
    (32, 32, "sgd", True, MemoryOptions()),
    (32, 4, "sgd", False, MemoryOptions("norms")),
    (50, 50, "adam", True, MemoryOptions()),
)
#: What a prediction may miss: the larger of a share and of bytes.
SHARE, BYTES = 0.02, 500_000


def cases() -> list[Case]:
    """Return all combinations."""
    return [
        Case(
            model=model,
            width=width,
            norm=norm,
            scheme=scheme,
            density=density,
            batch=batch,
            micro_batch=micro_batch,
            momentum=momentum,
            memory=memory,
            steps=2,
            optimizer=optimizer,
        )
        for model, width, norm in MODELS
        for scheme, density in SCHEMES
        for batch, micro_batch, optimizer, momentum, memory in WAYS
    ]


def settings_of(case: Case) -> OptimizerSettings:
    """Return the optimizer of a case."""
    settings = OptimizerSettings(1e-3, name=case.optimizer)
    return settings if case.momentum else settings.without_momentum()


def compiled_rows(chosen: list[Case] | None = None) -> Iterator[Row]:
    """Yield a row for each case."""
    chosen = cases() if chosen is None else chosen
    torch.set_num_threads(1)
    for case, size in zip(chosen, _measured(chosen), strict=True):
        predicted = predict(case)
        yield {
            "part": "prediction",
            "name": f"compiled {case.name} of {case.batch} {case.optimizer}",
            "model": case.model,
            "scheme": case.scheme,
            "ours": round(predicted.total / 1e6, 2),
            "peer": round(size / 1e6, 2),
            "peer_name": "measured",
            "unit": "MB; ours predicted (modelled), peer measured",
            "ratio": round(predicted.total / size, 3),
            "within": abs(predicted.total - size) <= max(SHARE * size, BYTES),
            "runs": 1,
            "parts": predicted.parts(),
        }


def _measured(chosen: list[Case]) -> Iterator[int]:
    """Yield the bytes of cases, as a clean process measures them."""
    command = [sys.executable, __file__, json.dumps([case.table() for case in chosen])]
    environment = os.environ | ALLOCATOR_ENVIRONMENT
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        yield from map(int, process.stdout)
    if process.returncode:
        raise RuntimeError("the measuring process failed; its error is on standard error")


def predict(case: Case) -> Footprint:
    """Predict the footprint of a case, messages left out."""
    dense = case.scheme == "dense"
    method = build_method("dense" if dense else "static", case.density)
    shape = TrainingShape(
        case.density,
        "uniform",
        case.micro_batch,
        case.batch,
        case.momentum,
        case.memory,
        case.optimizer,
    )
    trace = _trace(case.model, case.width, case.norm, None if dense else case.scheme)
    compiler = StepCompiler((IMAGE, torch.float32), CLASSIFICATION, settings_of(case))
    return footprint(trace, TrainingSetup(method, messages=False, compiler=compiler), shape)


@cache
def _trace(model: str, width: float, norm: str, scheme: str | None) -> ModelTrace:
    shell = build_shell(model, IMAGE, CLASSES, width=width, norm=norm, scheme=scheme)
    return trace_model(shell, IMAGE)


def measure_all(chosen: list[Case]) -> Iterator[int]:
    """Measure cases, one after the other."""
    for case in chosen:
        scheme = None if case.scheme == "dense" else case.scheme
        sparsity = None if scheme is None else Sparsity(scheme, case.density)
        options = {"width": case.width, "norm": case.norm, "sparsity": sparsity}
        generator = torch_generator(0, case.model)
        model = build_model(case.model, IMAGE, CLASSES, generator=generator, **options)
        work = partial(train, case, scheme, read_state(model))
        yield measure(work, partial(_warm_up, case, scheme)).added


def _warm_up(case: Case, scheme: str | None) -> None:
    """Bring in what a process has that has planned: libraries, and what descriptions take."""
    warm_up(scheme)
    small = replace(case, width=case.width / 4)
    sparsity = None if scheme is None else Sparsity(scheme, case.density)
    options = {"width": small.width, "norm": case.norm, "sparsity": sparsity}
    generator = torch_generator(0, case.model)
    model = build_model(case.model, IMAGE, CLASSES, generator=generator, **options)
    train(small, scheme, read_state(model))


def train(case: Case, scheme: str | None, state: SparseState) -> None:
    """Train as a client does: a shell, filled with a state, and compiled steps."""
    model = build_shell(case.model, IMAGE, CLASSES, width=case.width, norm=case.norm, scheme=scheme)
    write_state(model.train(), state)
    programs, settings = Programs(model), settings_of(case)
    programs.keep_within(0)
    trainer = CompiledTrainer(
        model,
        settings.build(model),
        micro_batch=case.micro_batch,
        batch_size=case.batch,
        memory=case.memory,
        programs=programs,
        settings=settings,
        rng=numpy_generator(0, "steps"),
    )
    drawn = Images.draw(case.batch)
    batch = Batch(drawn.images, drawn.labels, np.arange(case.batch))
    trainer.fit([batch] * case.steps)
    if programs.bytes == 0:
        raise RuntimeError(f"{case.name} has no program")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for size in measure_all([Case.of(table) for table in json.loads(sys.argv[1])]):
        print(size, flush=True)
