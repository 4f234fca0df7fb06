"""What each way to save memory costs in accuracy: short central runs on CIFAR-10.

ResNet-8, block density .1, mest-em, SGD with a cosine rate; every variant trains on the same images
in the same order for each seed, and differs in its memory options alone. Accuracies are measured on
the whole test set, after few epochs on part of the training set: they rank memory options, and say
nothing of how far such a network can get.

    python benchmarks/memory_accuracy.py --data FOLDER --json memory_accuracy.json
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from command_line import Parser, collect, positive, run, show
from harness import Row, software, write_json
from torch import nn

from mest_fed.catalogue import Engine
from mest_fed.data import Batches, DataSplit, load_dataset
from mest_fed.memory import MemoryOptions
from mest_fed.nn import Mutator, Sparsity, build_model
from mest_fed.nn.client_optimizer import ClientOptimizer
from mest_fed.rng import numpy_generator, torch_generator
from mest_fed.sparsity import Interval, MestEM, Method
from mest_fed.training import (
    CLASSIFICATION,
    EVALUATION_BATCH,
    CompiledTrainer,
    LocalTrainer,
    OptimizerSettings,
    evaluate,
)
from mest_fed.training import learning_rate as rate_at
from mest_fed.training.programs import Programs

RATE, BATCH = 0.1, 64
COLUMNS = {
    "variant": "name",
    "accuracy": "ours",
    "least": "least",
    "most": "most",
    "plain": "peer",
    "points lost": "points_lost",
}


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    norm: str = "group"
    density: float = 0.1
    micro_batch: int = BATCH
    momentum: bool = True
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    model: str = "resnet8"
    engine: str = "torch"
    method: Method = field(default_factory=MestEM)


PLAIN = {"group": Variant(), "batch": Variant("batch")}
VARIANTS = {
    "group norm, plain": PLAIN["group"],
    "consume gradients": Variant(memory=MemoryOptions(release_gradients=True)),
    "recompute segments": Variant(memory=MemoryOptions("segments")),
    "micro-batch 8": Variant(micro_batch=8),
    "segments, saved as fp16": Variant(memory=MemoryOptions("segments", "fp16")),
    "segments, saved as bf16": Variant(memory=MemoryOptions("segments", "bf16")),
    "segments, saved as int8": Variant(memory=MemoryOptions("segments", "int8")),
    "everything saved as int8": Variant(memory=MemoryOptions(saved="int8")),
    "half the density": Variant(density=0.05),
    "a quarter of the density": Variant(density=0.025),
    "no momentum, rate x 10": Variant(momentum=False),
    "first 1 of 4 segments frozen": Variant(memory=MemoryOptions(frozen=1)),
    "first 2 of 4 segments frozen": Variant(memory=MemoryOptions(frozen=2)),
    "batch norm, plain": PLAIN["batch"],
    "batch norm, micro-batch 8": Variant("batch", micro_batch=8),
    "batch norm, segments, saved as int8": Variant(
        "batch", memory=MemoryOptions("segments", "int8")
    ),
}


def train(variant: Variant, data: DataSplit, seed: int, images: int, epochs: int) -> float:
    """Train a variant; return its accuracy on the test set."""
    model = build_model(
        variant.model,
        tuple(data.train.inputs.shape[1:]),
        10,
        generator=torch_generator(seed, "model"),
        norm=variant.norm,
        sparsity=Sparsity("block", variant.density),
    )
    settings = OptimizerSettings(RATE)
    settings = settings if variant.momentum else settings.without_momentum()
    optimizer = settings.build(model, release_gradients=variant.memory.release_gradients)
    some = numpy_generator(seed, "images").permutation(len(data.train))[:images]
    batches = Batches(
        data.train,
        np.sort(some),
        BATCH,
        generator=numpy_generator(seed, "batches"),
        augmentation="crop-flip",
    )
    trainer, programs = _trainer(variant, model, optimizer, settings, seed)
    mutator = Mutator(model, variant.method, optimizer)
    interval = Interval(epochs, period=1 / epochs)
    for epoch in range(epochs):
        optimizer.learning_rate = rate_at("cosine", settings.learning_rate, epoch / epochs)
        if epoch:
            mutator.step(epoch, interval, seed)
        trainer.fit(batches)
    optimizer.close()
    test = Batches(data.test, np.arange(len(data.test)), EVALUATION_BATCH)
    totals = evaluate(model, test, forward=None if programs is None else programs.forward)
    return totals.values(CLASSIFICATION)["accuracy"]


def _trainer(
    variant: Variant,
    model: nn.Module,
    optimizer: ClientOptimizer,
    settings: OptimizerSettings,
    seed: int,
) -> tuple[LocalTrainer, Programs | None]:
    """Return the trainer of a variant's engine, and its programs if it has some."""
    how = {"micro_batch": variant.micro_batch, "memory": variant.memory}
    if variant.engine == Engine.TORCH:
        return LocalTrainer(model, optimizer, **how), None
    programs, rng = Programs(model), numpy_generator(seed, "dropout")
    compiled = {"programs": programs, "settings": settings, "rng": rng}
    return CompiledTrainer(model, optimizer, **how, **compiled), programs


def rows(options: argparse.Namespace, variants: Mapping[str, Variant] = VARIANTS) -> Iterator[Row]:
    """Yield a row for each variant, over all seeds; the first of a norm is what others lose to."""
    data = load_dataset("cifar10", str(options.data))
    plain: dict[str, list[float]] = {}
    for name, variant in variants.items():
        start = time.perf_counter(), time.process_time()
        found = [
            train(variant, data, seed, options.images, options.epochs)
            for seed in range(options.seeds)
        ]
        plain.setdefault(variant.norm, found)
        reference = plain[variant.norm]
        mine, other = statistics.mean(found), statistics.mean(reference)
        yield {
            "name": name,
            "ours": round(mine, 4),
            "least": round(min(found), 4),
            "most": round(max(found), 4),
            "peer": round(other, 4),
            "peer_name": "the same without savings",
            "unit": "accuracy on the CIFAR-10 test set, mean over seeds; measured",
            "ratio": round(mine / other, 4),
            "runs": options.seeds,
            "points_lost": round(100 * (other - mine), 2),
            "points_lost_by_seed": [
                round(100 * (b - a), 2) for a, b in zip(found, reference, strict=True)
            ],
            "spread": round(max(found) - min(found), 4),
            "ours_runs": [round(accuracy, 4) for accuracy in found],
            "seconds": round(time.perf_counter() - start[0], 1),
            "cpu_seconds": round(time.process_time() - start[1], 1),
        }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    return parser_of(__doc__).parse_args(arguments)


def parser_of(description: str) -> Parser:
    """Return the parser of a benchmark of accuracies."""
    parser = Parser(description.splitlines()[0], {"images": 512, "epochs": 1, "seeds": 1})
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's files")
    parser.add_argument("--images", type=positive, default=10_000, help="of the training set")
    parser.add_argument("--epochs", type=positive, default=5)
    parser.add_argument("--seeds", type=positive, default=3)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    done = collect(rows(options))
    show("Accuracy that saving memory costs, measured", done, COLUMNS)
    if options.json:
        facts = {"images": options.images, "epochs": options.epochs}
        write_json(options.json, done, software=software("torch", "numpy"), **facts)


if __name__ == "__main__":
    run(main)
