"""Predicted and measured peaks beside each other, for memory.py.

A clean process (this file as a program) measures all cases, each in a forked child, as a client
trains: a shell, a state written into it, steps. It predicts nothing, since a trace would leave
kernels' scratch behind that the children would find there already.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial

import torch
from harness import Row
from memory_case import Case
from memory_process import CLASSES, IMAGE, Images, step

from mest_fed.memory import (
    Footprint,
    MemoryOptions,
    TrainingSetup,
    TrainingShape,
    footprint,
    trace_model,
)
from mest_fed.memory import memory_saving as training_with
from mest_fed.memory.meter import measure, warm_up
from mest_fed.memory.trace import ModelTrace
from mest_fed.nn import SparseState, Sparsity, build_model, build_shell, read_state, write_state
from mest_fed.nn.optimizers import SGD
from mest_fed.rng import torch_generator
from mest_fed.sparsity import build_method
from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT

MODELS = (("resnet32", 2.0, "batch"), ("resnet32", 2.0, "group"), ("resnet18", 1.0, "group"))
MODELS += (("cnn2", 1.0, "group"), ("resnet8", 1.0, "batch"), ("resnet8", 1.0, "group"))
SCHEMES = (("block", 0.1), ("unstructured", 0.05), ("pattern", 0.1), ("channel", 0.2))
SCHEMES += (("dense", 1.0),)
WAYS = (
    (32, MemoryOptions()),
    (8, MemoryOptions("norms", "fp16", release_gradients=True)),
    (32, MemoryOptions("segments", "int8", release_gradients=True)),
    (8, MemoryOptions("segments", release_gradients=True)),
)


def cases() -> list[Case]:
    """Return all combinations."""
    return [
        Case(
            model=model,
            width=width,
            norm=norm,
            scheme=scheme,
            density=density,
            batch=32,
            micro_batch=micro_batch,
            memory=memory,
            steps=2,
        )
        for model, width, norm in MODELS
        for scheme, density in SCHEMES
        for micro_batch, memory in WAYS
    ]


def prediction_rows() -> Iterator[Row]:
    """Yield a row for each case."""
    done = subprocess.run(
        [sys.executable, __file__],
        stdout=subprocess.PIPE,
        env=os.environ | ALLOCATOR_ENVIRONMENT,
        check=True,
    )
    torch.set_num_threads(1)
    for case, size in zip(cases(), json.loads(done.stdout), strict=True):
        predicted = predict(case)
        yield {
            "part": "prediction",
            "name": case.name,
            "model": case.model,
            "scheme": case.scheme,
            "ours": round(predicted.total / 1e6, 2),
            "peer": round(size / 1e6, 2),
            "peer_name": "measured",
            "unit": "MB; ours predicted (modelled), peer measured",
            "ratio": round(predicted.total / size, 3),
            "runs": 1,
            "parts": predicted.parts(),
        }


def predict(case: Case) -> Footprint:
    """Predict the footprint of a case, messages left out."""
    dense = case.scheme == "dense"
    method = build_method("dense" if dense else "static", case.density)
    shape = TrainingShape(
        case.density, "uniform", case.micro_batch, case.batch, case.momentum, case.memory
    )
    trace = _trace(case.model, case.width, case.norm, None if dense else case.scheme)
    return footprint(trace, TrainingSetup(method, messages=False), shape)


@cache
def _trace(model: str, width: float, norm: str, scheme: str | None) -> ModelTrace:
    shell = build_shell(model, IMAGE, CLASSES, width=width, norm=norm, scheme=scheme)
    return trace_model(shell, IMAGE)


def measure_all() -> list[int]:
    """Measure all cases, one after the other."""
    sizes = []
    for case in cases():
        scheme = None if case.scheme == "dense" else case.scheme
        sparsity = None if scheme is None else Sparsity(scheme, case.density)
        options = {"width": case.width, "norm": case.norm, "sparsity": sparsity}
        generator = torch_generator(0, case.model)
        model = build_model(case.model, IMAGE, CLASSES, generator=generator, **options)
        work = partial(train, case, scheme, read_state(model))
        sizes.append(measure(work, partial(warm_up, scheme)).added)
    return sizes


def train(case: Case, scheme: str | None, state: SparseState) -> None:
    """Train as a client does: a shell, filled with a state."""
    model = build_shell(case.model, IMAGE, CLASSES, width=case.width, norm=case.norm, scheme=scheme)
    write_state(model.train(), state)
    options = {"momentum": 0.9 * case.momentum, "weight_decay": 1e-4}
    optimizer = SGD(
        model.parameters(), 0.01, release_gradients=case.memory.release_gradients, **options
    )
    batch = Images.draw(case.batch)
    with training_with(model, case.memory) as forward:
        for _ in range(case.steps):
            step(forward, optimizer, batch, case.micro_batch)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure_all()))
