"""Predicted and measured peaks beside each other, for memory.py: by torch, and of compiled steps.

A clean process (this file as a program) measures all cases, each in a forked child, as a client
trains: a shell, a state written into it, a trainer. It predicts nothing, since a trace would leave
kernels' scratch behind that the children would find there already.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from harness import Row
from memory_case import Case
from memory_process import Images
from train_contestants import CLASSES, IMAGE

from mest_fed.catalogue import Engine
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
from mest_fed.memory.warm_up import warm_up
from mest_fed.nn import Sparsity, build_model, build_shell, read_state, write_state
from mest_fed.rng import numpy_generator, torch_generator
from mest_fed.sparsity import build_method
from mest_fed.sparsity.state import SparseState
from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT
from mest_fed.system.peak_meter import measure
from mest_fed.training import CLASSIFICATION, CompiledTrainer, LocalTrainer
from mest_fed.training.programs import Programs
from mest_fed.training.step_compiler import StepCompiler

#: Model, width, norm.
MODELS = {
    Engine.TORCH: (
        ("resnet32", 2.0, "batch"),
        ("resnet32", 2.0, "group"),
        ("resnet18", 1.0, "group"),
        ("cnn2", 1.0, "group"),
        ("resnet8", 1.0, "batch"),
        ("resnet8", 1.0, "group"),
    ),
    Engine.COMPILED: (
        ("resnet8", 1.0, "batch"),
        ("resnet8", 1.0, "group"),
        ("resnet32", 1.0, "batch"),
        ("resnet32", 1.0, "group"),
        ("resnet18", 0.25, "batch"),
        ("resnet18", 0.5, "group"),
        ("cnn2", 1.0, "group"),
    ),
}
SCHEMES = (("block", 0.1), ("unstructured", 0.05), ("pattern", 0.1), ("channel", 0.2))
SCHEMES += (("dense", 1.0),)
_NORMS = MemoryOptions("norms", "fp16", release_gradients=True)
_PACKED = MemoryOptions("segments", "int8", release_gradients=True)
_SEGMENTS = MemoryOptions("segments", release_gradients=True)
#: How they train: fields of a case.
WAYS: Mapping[str, Sequence[dict[str, Any]]] = {
    Engine.TORCH: (
        {"batch": 32, "micro_batch": 32},
        {"batch": 32, "micro_batch": 8, "memory": _NORMS},
        {"batch": 32, "micro_batch": 32, "memory": _PACKED},
        {"batch": 32, "micro_batch": 8, "memory": _SEGMENTS},
    ),
    Engine.COMPILED: (
        {"batch": 32, "micro_batch": 32},
        {"batch": 32, "micro_batch": 4, "momentum": False, "memory": MemoryOptions("norms")},
        {"batch": 50, "micro_batch": 50, "optimizer": "adam"},
    ),
}
#: What a prediction may miss of compiled steps: the larger of a share and of bytes.
SHARE, BYTES = 0.02, 500_000
#: Predicted / measured by torch, at least and at most.
LEAST, MOST = 0.97, 1.1


def cases(engine: Engine) -> list[Case]:
    """Return all combinations."""
    return [
        Case(
            model=model,
            width=width,
            norm=norm,
            scheme=scheme,
            density=density,
            steps=2,
            engine=engine.value,
            **way,
        )
        for model, width, norm in MODELS[engine]
        for scheme, density in SCHEMES
        for way in WAYS[engine]
    ]


def title_of(case: Case) -> str:
    """Return the name of a case's row."""
    return (
        f"compiled {case.name} of {case.batch} {case.optimizer}" if case.is_compiled else case.name
    )


def prediction_rows(part: str, chosen: Sequence[Case]) -> Iterator[Row]:
    """Yield a row for each case."""
    torch.set_num_threads(1)
    for case, size in zip(chosen, _measured(chosen), strict=True):
        predicted = predict(case)
        yield {
            "part": part,
            "name": title_of(case),
            "model": case.model,
            "scheme": case.scheme,
            "engine": case.engine,
            "ours": round(predicted.total / 1e6, 2),
            "peer": round(size / 1e6, 2),
            "peer_name": "measured",
            "unit": "MB; ours predicted (modelled), peer measured",
            "ratio": round(predicted.total / size, 3),
            "within": is_within(case, predicted.total, size),
            "runs": 1,
            "parts": predicted.parts(),
        }


def is_within(case: Case, predicted: int, size: int) -> bool:
    """Say whether a prediction is within its bounds."""
    if case.is_compiled:
        return abs(predicted - size) <= max(SHARE * size, BYTES)
    return LEAST <= predicted / size <= MOST


def _measured(chosen: Sequence[Case]) -> Iterator[int]:
    """Yield the bytes of cases, as a clean process measures them."""
    command, pipe = [sys.executable, __file__], subprocess.PIPE
    environment = os.environ | ALLOCATOR_ENVIRONMENT
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        json.dump([case.table() for case in chosen], process.stdin)
        process.stdin.close()
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
    example = IMAGE, torch.float32
    compiler = StepCompiler(example, CLASSIFICATION, case.settings) if case.is_compiled else None
    return footprint(trace, TrainingSetup(method, messages=False, compiler=compiler), shape)


@cache
def _trace(model: str, width: float, norm: str, scheme: str | None) -> ModelTrace:
    shell = build_shell(model, IMAGE, CLASSES, width=width, norm=norm, scheme=scheme)
    return trace_model(shell, IMAGE)


def measure_all(chosen: Sequence[Case]) -> Iterator[int]:
    """Measure cases, one after the other."""
    for case in chosen:
        yield measure(partial(train, case, _state(case)), partial(_warm_up, case)).added


def _warm_up(case: Case) -> None:
    """Bring in what a process has that has planned: libraries, and what descriptions take."""
    warm_up(_scheme(case))
    if case.is_compiled:
        small = replace(case, width=case.width / 4)
        train(small, _state(small))


def _scheme(case: Case) -> str | None:
    return None if case.scheme == "dense" else case.scheme


def _state(case: Case) -> SparseState:
    scheme = _scheme(case)
    sparsity = None if scheme is None else Sparsity(scheme, case.density)
    options = {"width": case.width, "norm": case.norm, "sparsity": sparsity}
    generator = torch_generator(0, case.model)
    return read_state(build_model(case.model, IMAGE, CLASSES, generator=generator, **options))


def train(case: Case, state: SparseState) -> None:
    """Train as a client does: a shell, filled with a state, and its trainer."""
    scheme = _scheme(case)
    model = build_shell(case.model, IMAGE, CLASSES, width=case.width, norm=case.norm, scheme=scheme)
    write_state(model.train(), state)
    optimizer = case.settings.build(model, release_gradients=case.memory.release_gradients)
    how: dict[str, Any] = {"micro_batch": case.micro_batch, "memory": case.memory}
    programs = Programs(model)
    programs.keep_within(0)
    if case.is_compiled:
        rng = numpy_generator(0, "steps")
        how |= {"programs": programs, "settings": case.settings, "rng": rng}
        how["batch_size"] = case.batch
    trainer = (CompiledTrainer if case.is_compiled else LocalTrainer)(model, optimizer, **how)
    drawn = Images.draw(case.batch)
    batch = Batch(drawn.images, drawn.labels, np.arange(case.batch))
    trainer.fit([batch] * case.steps)
    if case.is_compiled and programs.bytes == 0:
        raise RuntimeError(f"{case.name} has no program")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for size in measure_all([Case.of(table) for table in json.load(sys.stdin)]):
        print(size, flush=True)
