"""Compiled training steps that are timed to calibrate a device.

Their programs come with the package, two sizes of each, from which others follow
(``mest_fed/training/calibration_programs.py`` makes them). Weights, masks and examples are drawn.
"""

import gzip
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from math import prod
from typing import Any

import numpy as np

from mest_fed.devices.cost import Work
from mest_fed.devices.program_work import program_step_work
from mest_fed.errors import InputError
from mest_fed.runtime.program import Program
from mest_fed.runtime.reading import parse_program
from mest_fed.runtime.sizes import resized
from mest_fed.runtime.step import CompiledStep
from mest_fed.units import number_of

#: The file of the programs beside this one.
PROGRAMS = "programs.json.gz"
#: Most lanes that a timed batch fills, a group of examples each.
_MOST_LANES = 4


@dataclass(frozen=True)
class Case:
    """A step that is timed.

    Parameters
    ----------
    model : str
        A model of ours, or ``norms``: a stack of norms and activations with one convolution.
    shape : tuple of int
        Of one example.
    scheme : str
        ``dense``, or the scheme of the sparse layers.
    density : float
        Of the sparse layers.
    group : int
        Examples that go through the model together.
    spreads : bool
        Whether there is a group for each thread, as in training; else it is the whole batch.
    """

    model: str
    shape: tuple[int, ...]
    scheme: str
    density: float
    group: int
    spreads: bool = True

    @property
    def name(self) -> str:
        """Name of its program."""
        of = "" if self.scheme == "dense" else f" {self.density:g}"
        return f"{self.model} {'x'.join(map(str, self.shape))} {self.scheme}{of} by {self.group}"

    def batch(self, threads: int) -> int:
        """Return the examples of a batch for so many threads."""
        return self.group * (min(threads, _MOST_LANES) if self.spreads else 1)


_DIGITS, _PICTURES = (1, 8, 8), (3, 32, 32)
#: What is timed. Each of the rates has steps that take most of their time by it.
CASES = (
    Case("resnet20", _PICTURES, "dense", 1.0, 8),
    Case("cnn2", _PICTURES, "dense", 1.0, 8),
    Case("resnet20", _PICTURES, "block", 0.1, 8),
    Case("resnet20", _PICTURES, "block", 0.25, 8),
    Case("cnn2", _PICTURES, "block", 0.1, 8),
    Case("resnet20", _PICTURES, "unstructured", 0.1, 8),
    Case("resnet20", _PICTURES, "unstructured", 0.25, 8),
    Case("cnn2", _PICTURES, "unstructured", 0.1, 8),
    Case("norms", _PICTURES, "dense", 1.0, 8),
    Case("resnet8", _DIGITS, "block", 0.1, 8),
    Case("mlp", _DIGITS, "block", 0.1, 10, spreads=False),
)


@dataclass(frozen=True)
class Sample:
    """A timed step: what it took, and the work that it is reckoned as (modelled).

    Parameters
    ----------
    case : Case
        The step.
    examples : int
        Of its batch.
    work : Work
        Modelled.
    seconds : float
        Measured, the median of several.
    spread : float
        Half of the inter-quartile range over the median.
    """

    case: Case
    examples: int
    work: Work
    seconds: float
    spread: float


def time_steps(
    threads: int, repeats: int, least: float, cases: tuple[Case, ...] = CASES
) -> Iterator[Sample]:
    """Time the steps, one after the other.

    Parameters
    ----------
    threads : int
        To compute with.
    repeats : int
        Timings of each, of which the median counts.
    least : float
        Seconds that a timing takes at least, by so many steps.
    """
    for case in cases:
        yield _sample(case, threads, repeats, least)


def _sample(case: Case, threads: int, repeats: int, least: float) -> Sample:
    first, second = programs()[case.name]

    def sizes(examples: int) -> Program:
        found = resized(first, second, examples)
        if found is None:
            raise InputError(f"{case.name}: no program of {number_of(examples, 'example')}")
        return found

    batch, rng = case.batch(threads), np.random.default_rng(0)
    step = CompiledStep(first, threads, rng, sizes, batch=batch)
    fill(step, rng)
    inputs = rng.normal(size=(batch, *case.shape)).astype(np.float32)
    targets = rng.integers(10, size=batch)

    # One thread is timed by its processor time: work of others on the device is left out.
    clock = time.process_time if threads == 1 else time.perf_counter

    def timed(times: int) -> float:
        start = clock()
        for _ in range(times):
            step.step(inputs, targets, 0.0)
        return (clock() - start) / times

    timed(1)
    times = max(1, round(least / max(timed(1), 1e-5)))
    runs = [timed(times) for _ in range(repeats)]
    seconds = statistics.median(runs)
    quartiles = (
        statistics.quantiles(runs, n=4, method="inclusive") if repeats > 1 else [seconds] * 3
    )
    work = program_step_work(first).of_batch(batch, first.examples)
    return Sample(case, batch, work, seconds, (quartiles[2] - quartiles[0]) / 2 / seconds)


def fill(step: CompiledStep, rng: np.random.Generator) -> None:
    """Write weights and masks into a step's memory, drawn at random."""
    program = step.program
    masks = dict(_masks(program))
    for name, array in step.arrays.items():
        if name in masks:
            chosen = rng.choice(masks[name], size=array.size, replace=False)
            step.load(name, np.sort(chosen).astype(array.dtype).reshape(array.shape))
        elif program.buffers[program.numbers[name]].role == "parameter":
            # Weights of norms are near one; what else has one dimension is a bias.
            scale = 1.0 if name.endswith("weight") and array.ndim == 1 else 0.0
            step.load(name, (scale + rng.normal(size=array.shape) * 0.05).astype(array.dtype))


def _masks(program: Program) -> Iterator[tuple[str, int]]:
    """Yield each list of active granules, and how many there are to choose from."""
    for operator in program.operators:
        if "slots" in operator.arguments:
            attributes: Mapping[str, Any] = operator.attributes
            name = program.buffers[operator.arguments["slots"]].name
            yield name, prod(attributes["weight_shape"]) // attributes["rows"]


@lru_cache(maxsize=1)
def programs() -> dict[str, tuple[Program, Program]]:
    """Return the programs of the package by the names of their cases, two sizes of each."""
    return {
        name: (parse_program(one, name), parse_program(two, name))
        for name, (one, two) in program_texts().items()
    }


def program_texts() -> dict[str, tuple[str, str]]:
    """Return them as JSON."""
    packed = (resources.files("mest_fed.devices.calibration") / PROGRAMS).read_bytes()
    table = json.loads(gzip.decompress(packed))
    return {name: (json.dumps(one), json.dumps(two)) for name, (one, two) in table.items()}
