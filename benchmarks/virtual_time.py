"""Modelled seconds of training steps against measured ones, on a profile of this very machine.

The profile has what a few steps of this machine gave: rates of operations from steps of a ResNet-20
(dense, blocks, single weights), the speed of a core from steps of a small perceptron. Other models,
micro-batches and engines are then predicted from it, as ``mest-fed plan`` and a simulation predict
a device, and timed: processor time on one thread, of the client's own trainer. In a row ``ours`` is
modelled, ``peer`` is measured, and ``ratio`` is how many times as long as measured was modelled.

    python benchmarks/virtual_time.py --json virtual-time.json
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from command_line import Parser, collect, positive, run, show
from harness import Row, keep_memory, software, write_json

from mest_fed.data import Batch
from mest_fed.devices import Work, torch_step_work, train_seconds
from mest_fed.devices.cost import REFERENCE, MachineRates
from mest_fed.kernels import torch_threads
from mest_fed.nn import build_model, sparsify
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.rng import torch_generator
from mest_fed.training import CompiledTrainer, LocalTrainer
from mest_fed.training.programs import Programs

SETTINGS = OptimizerSettings(0.01, momentum=0.9, weight_decay=1e-4)
DIGITS, CIFAR, SENSORS = (1, 8, 8), (3, 32, 32), (9, 128)
SCHEMES = {"dense": 1.0, "block": 0.1, "unstructured": 0.1}
#: Seconds that one timing of a case takes at least.
LEAST = 0.1
COLUMNS = {
    "step": "name",
    "modelled, ms": "ours",
    "measured, ms": "peer",
    "quartiles": "peer_quartiles",
    "modelled / measured": "ratio",
}


@dataclass(frozen=True)
class Case:
    """Steps of one model: its input, scheme, batch and micro-batch, and the engine."""

    model: str
    shape: tuple[int, ...]
    scheme: str
    batch: int
    micro_batch: int
    engine: str = "compiled"

    @property
    def name(self) -> str:
        """Name of its row."""
        size = "x".join(map(str, self.shape))
        taken = f"batch {self.batch} by {self.micro_batch}"
        return f"{self.engine}, {self.model} on {size}, {self.scheme}, {taken}"


class Steps:
    """The trainer of a case, as a client has it, on one batch."""

    def __init__(self, case: Case) -> None:
        generator = torch_generator(0, case.model)
        options = {"norm": "group"} if case.model.startswith("resnet") else {}
        model = build_model(case.model, case.shape, 10, generator=generator, **options)
        if case.scheme != "dense":
            sparsify(model, case.scheme, SCHEMES[case.scheme])
        optimizer, how = SETTINGS.build(model), {"micro_batch": case.micro_batch}
        self.trainer: LocalTrainer
        if case.engine == "torch":
            costs = partial(torch_step_work, model, case.shape)
            self.trainer = LocalTrainer(model, optimizer, costs=costs, **how)
        else:
            own: dict[str, Any] = {"programs": Programs(model), "settings": SETTINGS}
            own |= {"rng": np.random.default_rng(0), "batch_size": case.batch}
            self.trainer = CompiledTrainer(model, optimizer, **own, **how)
        inputs = torch.randn(case.batch, *case.shape, generator=generator)
        targets = torch.randint(10, (case.batch,), generator=generator)
        self.batch = Batch(inputs, targets, np.arange(case.batch))
        self._take(2)
        self.work = self._take(1)
        self._times = max(1, round(LEAST / self._time(1)))

    def seconds(self, repeats: int) -> list[float]:
        """Time steps: processor seconds of one, several times."""
        return [self._time(self._times) for _ in range(repeats)]

    def _time(self, times: int) -> float:
        start = time.process_time()
        self.trainer.fit([self.batch] * times)
        return (time.process_time() - start) / times

    def _take(self, times: int) -> Work:
        self.trainer.work = Work()
        self.trainer.fit([self.batch] * times)
        return self.trainer.work


def calibrate(repeats: int) -> MachineRates:
    """Return the rates of one core of this machine."""
    speed = core_speed(repeats)
    rates = replace(REFERENCE, core_speed=speed, memory_rate=REFERENCE.memory_rate * speed)
    for scheme in SCHEMES:
        steps = Steps(Case("resnet20", CIFAR, scheme, 32, 32))
        seconds, work = statistics.median(steps.seconds(repeats)), steps.work
        kind = "dense_flops" if scheme == "dense" else "sparse_flops"
        rest = train_seconds(rates, replace(work, **{kind: 0.0}), scheme_of(scheme))
        rate = getattr(work, kind) / max(seconds - rest, 0.1 * seconds)
        rates = replace(rates, flops={**rates.flops, scheme: rate})
    return rates


def core_speed(repeats: int) -> float:
    """Return the speed of a core with small calls, as a multiple of the reference machine's."""
    with torch_threads(1):
        tiny = Steps(Case("mlp", DIGITS, "block", 10, 10))
        seconds = statistics.median(tiny.seconds(repeats))
    return train_seconds(REFERENCE, tiny.work, "block") / seconds


def scheme_of(scheme: str) -> str:
    """Return a scheme for which rates have a number: a dense model has no sparse work."""
    return "block" if scheme == "dense" else scheme


def cases(engines: Sequence[str]) -> Iterator[Case]:
    """Yield what is predicted and timed."""
    for engine, scheme in itertools.product(engines, SCHEMES):
        for batch, micro_batch in ((10, 10), (10, 1)):
            yield Case("mlp", DIGITS, scheme, batch, micro_batch, engine)
        for batch, micro_batch in ((10, 10), (10, 2)):
            yield Case("cnn2", CIFAR, scheme, batch, micro_batch, engine)
        for shape, micro_batch in itertools.product((DIGITS, CIFAR), (16, 2)):
            yield Case("resnet8", shape, scheme, 16, micro_batch, engine)
        yield Case("resnet20", CIFAR, scheme, 8, 2, engine)
        yield Case("har1d", SENSORS, scheme, 16, 16, engine)


def measure(options: argparse.Namespace, rates: MachineRates) -> Iterator[Row]:
    """Predict and time each case; yield its row."""
    for case in cases(options.engines):
        steps = Steps(case)
        runs = steps.seconds(options.repeats)
        modelled = train_seconds(rates, steps.work, scheme_of(case.scheme))
        measured = statistics.median(runs)
        first, _, third = statistics.quantiles(runs, n=4, method="inclusive")
        yield {
            "name": case.name,
            "ours": round(modelled * 1e3, 4),
            "peer": round(measured * 1e3, 4),
            "unit": "ms",
            "ratio": round(modelled / measured, 3),
            "runs": len(runs),
            "peer_quartiles": [round(first * 1e3, 4), round(third * 1e3, 4)],
            "work": vars(steps.work),
        }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__.splitlines()[0], {"repeats": 3, "engines": ["compiled"]})
    parser.add_argument(
        "--engines", nargs="+", default=["compiled", "torch"], choices=["compiled", "torch"]
    )
    parser.add_argument("--repeats", type=positive, default=7, help="timings of each, 2 and more")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    keep_memory()
    with torch_threads(1):
        rates = calibrate(options.repeats)
        speeds = ", ".join(f"{kind} {rate / 1e9:.1f}" for kind, rate in rates.flops.items())
        print(f"this machine, one core: GFLOP/s {speeds}; core speed {rates.core_speed:.2f}")
        rows = collect(measure(options, rates))
    show("One training step: modelled against measured", rows, COLUMNS)
    close = sum(2 / 3 <= row["ratio"] <= 3 / 2 for row in rows)
    print(f"{close} of {len(rows)} within a factor of 1.5")
    if options.json:
        versions = software("torch", "numpy")
        write_json(
            options.json, rows, software=versions, rates=vars(rates) | {"flops": dict(rates.flops)}
        )


if __name__ == "__main__":
    run(main)
