"""One training step as a compiled program, against our torch path and dense torch.

The compiled step takes the batch in groups of some images, which go through all layers one after
the other; --groups times other sizes. A step is forward, cross-entropy, backward, SGD with
momentum; all sides start from the same weights, see the same batch, and are timed in turn in one
process. Times are measured: of the processor with one thread, of the clock with more. The table by
operator holds the compiled step's operators, each run and timed alone, in turn, by the processor's
time of all threads, as often as a step runs it: once a group or once a batch.

    python benchmarks/compiled_step.py --json compiled_step.json
    python benchmarks/compiled_step.py --model cnn2 --batch 10 --density 1
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from command_line import Parser, collect, positive, run, share, show
from harness import Row, compare, in_turn, keep_memory, software, write_json
from train_contestants import LEARNING_RATE, dense, fused, ours
from train_step import CLASSES, IMAGE, MODELS
from tuned import set_kernels

from mest_fed.kernels import torch_threads
from mest_fed.nn import build_model, sparsify
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.rng import torch_generator
from mest_fed.runtime.passes.groups import group_size
from mest_fed.runtime.step import CompiledStep
from mest_fed.training.step_program import PASSES, STORAGE, StepPrograms
from mest_fed.training.tasks import Classification

COLUMNS = {
    "model, contestant": "name",
    "compiled": "ours",
    "other": "peer",
    "ratio": "ratio",
    "arena bytes": "arena_bytes",
    "compiled quartiles": "ours_quartiles",
    "other quartiles": "peer_quartiles",
}
OPERATORS = {"operator": "operator", "count": "count", "ms": "ms", "share": "share"}


def compiled(model: torch.nn.Module, options: argparse.Namespace) -> dict[str, CompiledStep]:
    """Make a model compiled steps, the first of the group that the arena wants.

    With a density of 1 it stays dense. A batch that is one group is updated directly.
    """
    if options.density < 1:
        sparsify(model, options.scheme, options.density)
    settings = OptimizerSettings(momentum=0.9, weight_decay=1e-4)
    task, example = Classification(), (IMAGE, torch.float32)
    how = {"passes": options.passes, "storage": options.storage}
    programs = StepPrograms(model.train(), example, task, settings, **how)
    groups = [group_size(programs, options.batch)]
    if groups == [options.batch] and not options.groups:
        programs = StepPrograms(model, example, task, settings, groups=False, **how)
    elif programs(2).takes_groups:
        groups += [it for it in options.groups if it <= options.batch and it not in groups]
    steps = {}
    for group in groups:
        step = CompiledStep(programs(group), options.threads, resize=programs, batch=options.batch)
        for name, array in programs.captured(group).arrays().items():
            step.load(name, array)
        steps[f"groups of {group}"] = step
    return steps


def by_operator(step: CompiledStep, batch: int, repeats: int) -> list[Row]:
    """Time each operator of a step alone; return sums of medians by name, the largest first."""
    names = [it.name for it in step.program.operators]
    groups = batch / step.program.examples
    runs: list[list[float]] = [[] for _ in names]
    for _ in range(repeats):
        for place in range(len(names)):
            start = time.process_time()
            step.runtime.run(place, place + 1)
            runs[place].append(time.process_time() - start)
    medians = [
        statistics.median(it) * (groups if place < step.program.per_group else 1)
        for place, it in enumerate(runs)
    ]
    whole = sum(medians)
    seconds = dict.fromkeys(names, 0.0)
    for name, median in zip(names, medians, strict=True):
        seconds[name] += median
    rows: list[Row] = [
        {
            "operator": name,
            "count": names.count(name),
            "ms": round(1e3 * own, 3),
            "share": round(own / whole, 3),
        }
        for name, own in seconds.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def measure(options: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Time one model; return the rows of contestants and of operators."""
    own, batch = MODELS[options.model], options.batch
    width = options.width or own.width

    def build() -> torch.nn.Module:
        generator = torch_generator(0, own.name)
        return build_model(
            own.name, IMAGE, CLASSES, generator=generator, width=width, norm=options.norm
        )

    generator = torch_generator(0, "batch")
    images = torch.randn(batch, *IMAGE, generator=generator)
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    steps = compiled(build(), options)
    step = next(iter(steps.values()))
    library = (
        ours(build(), options.scheme, options.density) if options.density < 1 else fused(build())
    )
    set_kernels(library.model, IMAGE, batch, options.kernels)

    def call(own: CompiledStep) -> None:
        own.step(images.numpy(), labels.numpy(), LEARNING_RATE)

    def unparted(contestant: Callable[..., object], narrow: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            contestant(images, labels)

    timings = in_turn(
        {
            **{name: partial(call, it) for name, it in steps.items()},
            "library": partial(unparted, library),
            "dense": partial(unparted, dense(build())),
            "dense, bf16 autocast": partial(unparted, dense(build()), narrow=True),
        },
        options.repeats,
        options.warm_up,
        time.process_time if options.threads == 1 else time.perf_counter,
    )
    scheme = options.scheme if options.density < 1 else "dense"
    what = f"{own.name} width {width:g}, batch {batch}, {options.norm} norm, {scheme}"
    fields = {
        "model": own.name,
        "width": width,
        "batch": batch,
        "norm": options.norm,
        "scheme": scheme,
        "density": options.density,
        "passes": options.passes,
        "storage": options.storage,
        "threads": options.threads,
    }
    first = next(iter(steps))

    def memory(name: str) -> dict[str, int]:
        own = steps[name]
        return {
            "group": own.program.examples,
            "arena_bytes": own.arena_bytes,
            "workspace_bytes": own.runtime.workspace_bytes,
        }

    def rows() -> Iterator[Row]:
        for other in ("library", "dense", "dense, bf16 autocast"):
            name = f"{what} {options.density:g}: {other}"
            more = {**fields, **memory(first)}
            yield compare(name, timings[first], timings[other], peer_name=other, **more)
        for other in list(steps)[1:]:
            name = f"{what} {options.density:g}: dense, compiled in {other}"
            more = {**fields, **memory(other)}
            yield compare(name, timings[other], timings["dense"], peer_name="dense", **more)

    return collect(rows()), by_operator(step, batch, options.repeats)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    quick = {"model": "cnn2", "batch": 8, "repeats": 3, "warm_up": 1}
    parser = Parser(__doc__.splitlines()[0], quick)
    parser.add_argument("--model", default="resnet32", choices=MODELS)
    parser.add_argument("--norm", default="group", choices=["group", "batch"])
    parser.add_argument("--scheme", default="block", help="a scheme of mest-fed")
    parser.add_argument("--density", type=share, default=0.1, help="1: a dense model")
    parser.add_argument("--passes", nargs="*", choices=PASSES, default=[*PASSES])
    parser.add_argument("--storage", choices=STORAGE, default="fp32", help="of planes")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument(
        "--groups", type=positive, nargs="*", default=[], help="other sizes of groups"
    )
    parser.add_argument("--width", type=share, help="a smaller model, to try the benchmark")
    parser.add_argument("--kernels", choices=["tuned", "rule"], default="tuned")
    parser.add_argument("--repeats", type=positive, default=15, help="timed steps of each")
    parser.add_argument("--warm-up", type=positive, default=3, help="untimed steps of each")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    keep_memory()
    with torch_threads(options.threads):
        rows, operators = measure(options)
    show("One training step, measured: ms", rows, COLUMNS)
    show("The compiled step by operator, measured: ms of the processor", operators, OPERATORS)
    if options.json:
        versions = software("torch", "numpy")
        write_json(options.json, rows, software=versions, operators=operators)


if __name__ == "__main__":
    run(main)
