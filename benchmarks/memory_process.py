"""One contestant of memory.py in a process of its own: trains some steps, prints bytes and seconds.

    echo '{"side": "ours", "model": "resnet32", ...}' | python benchmarks/memory_process.py

Resident memory is read before the model exists, after imports, loaded images and a warm_up_run: the
same training at a small scale, whose pages of library code count as imports for either side.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from memory_case import Case
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train_contestants import CLASSES, IMAGE, sgd, unfused

from mest_fed.memory import memory_saving
from mest_fed.memory.warm_up import warm_up
from mest_fed.nn import Sparsity, build_model
from mest_fed.rng import torch_generator
from mest_fed.system.peak_meter import PeakMeter, read_counters
from mest_fed.training import CLASSIFICATION
from mest_fed.training.model_step import ModelStep
from mest_fed.training.places import Copies
from mest_fed.training.program_choice import best_programs
from mest_fed.training.step_program import StepPrograms


@dataclass(frozen=True)
class Images:
    """One batch."""

    images: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, count: int) -> "Images":
        """Draw a batch."""
        generator = torch_generator(0, "batch")
        images = torch.randn(count, *IMAGE, generator=generator)
        return cls(images, torch.randint(CLASSES, (count,), generator=generator))

    def first(self, count: int) -> "Images":
        """Return the first images alone."""
        return Images(self.images[:count], self.labels[:count])


def build(case: Case, width: float) -> nn.Module:
    """Build a contestant's model."""
    generator = torch_generator(0, case.model)
    is_sparse = case.side == "ours" and case.scheme != "dense"
    sparsity = Sparsity(case.scheme, case.density) if is_sparse else None
    options = {"generator": generator, "width": width, "norm": case.norm}
    model = build_model(case.model, IMAGE, CLASSES, sparsity=sparsity, **options).train()
    return unfused(model) if case.side == "dense" else model


def train(case: Case, width: float, batch: Images, steps: int) -> list[float]:
    """Train some steps; return the seconds of each."""
    seconds = []
    with steps_of(case, build(case, width), batch) as take:
        for _ in range(steps):
            start = time.perf_counter()
            take()
            seconds.append(time.perf_counter() - start)
    return seconds


@contextmanager
def steps_of(case: Case, model: nn.Module, batch: Images) -> Iterator[Callable[[], object]]:
    """Give what takes a step of a model on a batch."""
    if case.is_compiled:
        rate = case.settings.learning_rate
        yield partial(compiled(case, model).train, batch.images, batch.labels, rate)
        return
    if case.side == "dense":
        optimizer = sgd(model)
    else:
        release = case.memory.release_gradients
        optimizer = case.settings.build(model, release_gradients=release)
    with memory_saving(model, case.memory) as forward:
        yield partial(step, forward, optimizer, batch, case.micro_batch)


def compiled(case: Case, model: nn.Module) -> ModelStep:
    """Make a model's compiled step, in the memory of the model, as a client does."""
    example = IMAGE, torch.float32
    make = partial(
        StepPrograms, model, example, CLASSIFICATION, case.settings, storage=case.storage
    )
    whole = case.batch <= case.micro_batch
    programs = best_programs(make, case.micro_batch, whole=whole)
    made = ModelStep(programs, case.micro_batch, case.threads)
    made.bind(case.settings.build(model), Copies())
    return made


def step(forward, optimizer, batch: Images, micro_batch: int) -> None:
    """Take one step in micro-batches."""
    optimizer.zero_grad()
    count = len(batch.labels)
    for first in range(0, count, micro_batch):
        part = slice(first, first + micro_batch)
        loss = cross_entropy(forward(batch.images[part]), batch.labels[part], reduction="sum")
        (loss / count).backward()
    optimizer.step()


def main() -> None:
    case = Case.of(json.load(sys.stdin))
    torch.set_num_threads(case.threads)
    batch = Images.draw(case.batch)
    now = read_counters()
    imported = now.anonymous
    if case.side == "ours":
        warm_up(None if case.scheme == "dense" else case.scheme)
    if case.side == "dense" or case.is_compiled:
        train(case, case.width / 4, batch.first(8), 2)
    with PeakMeter() as meter:
        seconds = train(case, case.width, batch, case.steps)
    print(
        json.dumps(
            {
                "added": meter.added,
                "peak": meter.peak,
                "baseline": meter.baseline,
                "imported": imported,
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
