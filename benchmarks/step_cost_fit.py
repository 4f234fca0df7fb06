"""Fit the constants of a step's cost to steps that this machine takes, and foretell models by it.

    python benchmarks/step_cost_fit.py [--json FILE] [--engines compiled torch] [--repeats N]

Some 60 steps of each engine are timed as ``virtual_time.py`` does: processor time of the client's
own trainer on one thread, perceptrons to ResNet-20, micro-batches of 1 to 64. What a constant of
the code multiplies is asked of the code itself (:mod:`mest_fed.devices`): a step's work with that
constant at 1 and the others at 0. Non-negative least squares of relative errors give each constant.
An operator of a program counts as operations or as bytes, as the code's rates decide, not the
fitted ones.

Times and constants are measured on this machine; what a fit gives for a step is modelled. A model
``left out`` is foretold by the fit to the others: how well a model that nobody has timed is
foretold. A constant that only the model left out has is 0 in that fit, and is named as unseen.
``ours`` in a row is what the code's constants give, ``peer`` is measured, ``ratio`` is ours / peer:
on another machine than the reference machine it differs from 1 by the speed as well, which
``the code's, scaled`` takes out.
"""

import argparse
import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
from command_line import Parser, collect, positive, run, show
from harness import Row, Timing, keep_memory, software, write_json
from sklearn.linear_model import LinearRegression
from virtual_time import CIFAR, DIGITS, SCHEMES, SENSORS, Case, Steps, cases, scheme_of

from mest_fed.devices import Work, program_step_work, torch_step_work, train_seconds
from mest_fed.devices.cost import REFERENCE, WeightSeconds, rate_of
from mest_fed.devices.program_work import PROGRAM_SECONDS
from mest_fed.devices.torch_work import TORCH_SECONDS
from mest_fed.errors import InputError
from mest_fed.kernels import torch_threads

#: Seconds by constant, or what a constant multiplies: rates count as seconds of one operation.
Constants = dict[str, float]
#: Engine -> the constants of the code that calls, planes and starts multiply.
SECONDS: dict[str, WeightSeconds] = {"compiled": PROGRAM_SECONDS, "torch": TORCH_SECONDS}
#: Model, input, and batches with micro-batches that ``virtual_time.py`` has not.
FURTHER = (
    ("mlp", DIGITS, ((64, 64), (64, 8), (32, 2))),
    ("cnn2", CIFAR, ((32, 32), (16, 1))),
    ("resnet8", DIGITS, ((64, 64), (8, 1))),
    ("resnet8", CIFAR, ((32, 32),)),
    ("resnet20", CIFAR, ((16, 16),)),
    ("har1d", SENSORS, ((64, 64), (16, 4), (16, 1))),
)
COLUMNS = {
    "constant": "name",
    "unit": "unit",
    "code's": "code",
    "fitted": "fitted",
    "without a model": "without",
    "cases": "cases",
}
QUALITY = {
    "engine": "engine",
    "constants": "name",
    "cases": "cases",
    "least": "least",
    "median": "median",
    "most": "most",
    "within 1.5 times": "near",
    "root of mean squared error": "error",
}


def all_cases(engine: str) -> Iterator[Case]:
    """Yield the cases of an engine: those of ``virtual_time.py``, and more micro-batches."""
    yield from cases([engine])
    for scheme, (model, shape, sizes) in itertools.product(SCHEMES, FURTHER):
        for batch, micro_batch in sizes:
            yield Case(model, shape, scheme, batch, micro_batch, engine)


def work_with(steps: Steps, case: Case, seconds: Any) -> Work:
    """Return what the code says that a step takes, with other constants for calls and starts.

    Raises
    ------
    InputError
        If the model has no compiled step.
    """
    trainer: Any = steps.trainer
    if case.engine == "torch":
        step = torch_step_work(trainer.model, case.shape, seconds=seconds)
        return step.of_batch(case.batch, case.micro_batch)
    whole = case.batch <= case.micro_batch
    found = trainer.programs.step(
        trainer.objective, trainer.settings, steps.batch, case.micro_batch, whole=whole
    )
    if found is None:
        raise InputError(f"{case.name}: no compiled step")
    program = found.step.program
    return program_step_work(program, seconds).of_batch(case.batch, program.examples)


def features_of(engine: str, scheme: str, work: Callable[[Any], Work]) -> Constants:
    """Return what each constant of the code multiplies in a step.

    Parameters
    ----------
    engine : str
        Whose constants.
    scheme : str
        Of the sparse layers, ``dense`` without any.
    work : callable
        Gives the step's work by the constants of calls, planes and starts.
    """
    kind = type(SECONDS[engine])
    zeros = kind(**dict.fromkeys((it.name for it in fields(kind)), 0.0))
    found = {}
    for it in fields(kind):
        one = work(replace(zeros, **{it.name: 1.0}))
        found[it.name] = one.core_seconds + one.gather_seconds
    bare = work(zeros)
    sparse = {name: 0.0 for name in REFERENCE.flops if name != "dense"}
    sparse[scheme_of(scheme)] = bare.sparse_flops
    return {"dense": bare.dense_flops, **sparse, "bytes": bare.moved_bytes, **found}


def constants_of(engine: str) -> Constants:
    """Return the code's own constants."""
    rates = {name: 1 / rate_of(REFERENCE, name) for name in REFERENCE.flops}
    return {**rates, "bytes": 1 / REFERENCE.memory_rate, **vars(SECONDS[engine])}


def seconds_by(constants: Mapping[str, float], features: Mapping[str, float]) -> float:
    """Return the seconds of a step."""
    return sum(constants[name] * value for name, value in features.items())


def fit(rows: Sequence[Row]) -> Constants:
    """Return the constants, none below 0, with the least squares of relative errors of steps."""
    names = list(rows[0]["features"])
    measured = np.array([row["peer"] / 1e3 for row in rows])
    table = np.array([[row["features"][name] for name in names] for row in rows])
    table = table / measured[:, None]
    size = table.max(axis=0)
    size[size == 0] = 1.0  # of a constant that no case has: it stays 0
    model = LinearRegression(positive=True, fit_intercept=False)
    model.fit(table / size, np.ones(len(rows)))
    return dict(zip(names, (float(it) for it in model.coef_ / size), strict=True))


def unseen(rows: Sequence[Row]) -> list[str]:
    """Return the constants that no case has."""
    return [name for name in rows[0]["features"] if not any(row["features"][name] for row in rows)]


def measure(engine: str, repeats: int) -> Iterator[Row]:
    """Time each case; yield its row."""
    for case in all_cases(engine):
        steps = Steps(case)
        features = features_of(engine, case.scheme, partial(work_with, steps, case))
        timing = Timing(tuple(steps.seconds(repeats)))
        ours = train_seconds(REFERENCE, steps.work, scheme_of(case.scheme))
        if not np.isclose(ours, seconds_by(constants_of(engine), features), rtol=1e-9):
            raise InputError(f"{case.name}: its features are not those of the trainer's work")
        yield {
            "name": case.name,
            "engine": engine,
            "model": case.model,
            "ours": round(ours * 1e3, 5),
            "peer": round(timing.median * 1e3, 5),
            "unit": "ms",
            "ratio": round(ours / timing.median, 3),
            "runs": len(timing.runs),
            "peer_quartiles": [round(it * 1e3, 5) for it in timing.quartiles],
            "features": features,
        }


def quality(rows: Sequence[Row], name: str, ratios: Sequence[float]) -> Row:
    """Return how near modelled / measured is to 1."""
    return {
        "engine": rows[0]["engine"],
        "name": name,
        "cases": len(ratios),
        "least": round(min(ratios), 3),
        "median": round(statistics.median(ratios), 3),
        "most": round(max(ratios), 3),
        "near": sum(2 / 3 <= it <= 3 / 2 for it in ratios),
        "error": round(statistics.fmean((it - 1) ** 2 for it in ratios) ** 0.5, 3),
    }


def judge(rows: list[Row]) -> dict[str, Any]:
    """Fit the steps of an engine; say of each row what the fits give, and return the fits."""
    engine, code, fitted = rows[0]["engine"], constants_of(rows[0]["engine"]), fit(rows)
    without: dict[str, Constants] = {}
    lacking: dict[str, list[str]] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        others = [row for row in rows if row["model"] != model]
        if others:
            without[model] = fit(others)
            lacking[model] = [it for it in unseen(others) if it not in unseen(rows)]
    for row in rows:
        row["fitted_ratio"] = _ratio(fitted, row)
        if row["model"] in without:
            row["left_out_ratio"] = _ratio(without[row["model"]], row)
    raw = [row["ratio"] for row in rows]
    speed = statistics.median(raw)
    found = [
        quality(rows, "the code's", raw),
        quality(rows, "the code's, scaled", [it / speed for it in raw]),
        quality(rows, "fitted", [row["fitted_ratio"] for row in rows]),
    ]
    if without:
        left_out = [(row["model"], row["left_out_ratio"]) for row in rows]
        found.append(quality(rows, "left out, all models", [it for _, it in left_out]))
        found += [
            quality(rows, f"left out: {model}", [it for name, it in left_out if name == model])
            for model in without
        ]
    seen = {name: sum(row["features"][name] > 0 for row in rows) for name in code}
    table = [
        {
            "name": name,
            **_in_units(name, code[name], fitted[name], [it[name] for it in without.values()]),
            "cases": seen[name],
        }
        for name in code
    ]
    return {
        "engine": engine,
        "constants": table,
        "without": without,
        "unseen": {model: names for model, names in lacking.items() if names},
        "quality": found,
    }


def _ratio(constants: Constants, row: Row) -> float:
    return round(seconds_by(constants, row["features"]) / (row["peer"] / 1e3), 3)


def _in_units(name: str, code: float, fitted: float, without: Sequence[float]) -> Row:
    """Return a constant as the code states it: rates a second, and seconds; None is no limit."""
    is_rate = name in REFERENCE.flops or name == "bytes"

    def stated(seconds: float) -> float | None:
        if not is_rate:
            return seconds * 1e6
        return None if seconds == 0 else 1e-9 / seconds

    unit = "us" if not is_rate else "GB/s" if name == "bytes" else "GFLOP/s"
    texts = ["-" if (it := stated(each)) is None else f"{it:.3g}" for each in without]
    without_each = ", ".join(texts) or None
    return {"unit": unit, "code": stated(code), "fitted": stated(fitted), "without": without_each}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--engines", nargs="+", default=["compiled", "torch"], choices=["compiled", "torch"]
    )
    parser.add_argument("--repeats", type=positive, default=5, help="timings of each case")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, fit, print, and write a file."""
    options = parse(arguments)
    keep_memory()
    load = [round(os.getloadavg()[0], 2)]
    rows, fits = [], []
    for engine in dict.fromkeys(options.engines):
        with torch_threads(1):
            timed = collect(measure(engine, options.repeats))
        load.append(round(os.getloadavg()[0], 2))
        if not timed:
            break
        rows += timed
        fits.append(judge(timed))
        models = ", ".join(fits[-1]["without"])
        show(f"{engine}: constants; without, in turn: {models}", fits[-1]["constants"], COLUMNS)
        show("Modelled / measured", fits[-1]["quality"], QUALITY)
        for model, names in fits[-1]["unseen"].items():
            print(f"without {model} no case has: {', '.join(names)}")
    print(f"load of the machine: {', '.join(map(str, load))}")
    if options.json:
        versions = software("torch", "numpy", "scikit-learn")
        write_json(options.json, rows, software=versions, load=load, fits=fits)


if __name__ == "__main__":
    run(main)
