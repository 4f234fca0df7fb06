"""One compiled training step from inside: its operators, other groups, passes switched off.

How it stands against torch is train_step.py's to say. Here the step that a client takes is timed
beside the same step

- in groups of half and of twice as many images, or of ``--groups`` (groups go through all layers
  one after the other; a step whose batch has to be, or is best, one group has no others);
- without one of the passes that its program went through. What is then best otherwise is chosen
  again, the group's size too. Passes that change nothing in this program have no row.

``ratio`` is the time of the other step over that of the client's. Steps are timed in turn in one
process: by the processor's time with one thread, by the clock with more. The table by operator
holds the client's step, each operator run and timed alone, in turn, by the processor's time of all
threads, as often as a step runs it: once a group or once a batch. All times are measured.

    python benchmarks/compiled_step.py --json compiled_step.json
    python benchmarks/compiled_step.py --model cnn2 --batch 10 --density 1
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from command_line import Parser, collect, positive, run, share, show
from harness import Row, compare, in_turn, keep_memory, software, write_json
from train_contestants import DENSE, MODELS, Case, compiled, facts, run_compiled

from mest_fed.kernels import torch_threads
from mest_fed.runtime.step import CompiledStep
from mest_fed.sparsity import layout_for
from mest_fed.training.step_program import PASSES, STORAGE

COLUMNS = {
    "other step": "peer_name",
    "client's": "ours",
    "other": "peer",
    "ratio": "ratio",
    "client's quartiles": "ours_quartiles",
    "other quartiles": "peer_quartiles",
    "group": "peer_group",
    "arena bytes": "peer_arena_bytes",
}
OPERATORS = {"operator": "operator", "count": "count", "ms": "ms", "share": "share"}
CLIENTS = "client's"


def steps_of(case: Case, options: argparse.Namespace) -> dict[str, CompiledStep]:
    """Make the client's step and the others."""
    batch = case.model.batch

    def make(without: str = "", group: int | None = None) -> CompiledStep:
        how = {"storage": options.storage, "without": without, "group": group}
        return compiled(case.build_sparse(), batch, case.threads, **how)

    own = make()
    steps = {CLIENTS: own}
    if own.program.takes_groups:
        chosen = own.program.examples
        sizes = [chosen // 2, 2 * chosen] if options.groups is None else options.groups
        for size in sizes:
            if size != chosen and 1 <= size <= batch:
                steps[f"groups of {size}"] = make(group=size)
    for name in options.passes:
        other = make(without=name)
        if other.program.sha256 != own.program.sha256:
            steps[f"without {name}"] = other
    return steps


def by_operator(step: CompiledStep, batch: int, repeats: int) -> list[Row]:
    """Time each operator of a step alone; return sums of medians by name, the largest first."""
    names = [it.name for it in step.program.operators]
    for number in step.program.of_role("input"):  # a step unbinds its batch
        rows = step.program.buffers[number]
        step.runtime.bind_name(rows.name, np.ones(rows.shape, rows.dtype))
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


def measure(case: Case, options: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Time one case; return the rows of other steps and of operators."""
    batch, steps = case.batch(), steps_of(case, options)
    contestants = {name: partial(run_compiled, step, *batch) for name, step in steps.items()}
    timings = in_turn(contestants, options.repeats, options.warm_up, case.clock)
    common = {**case.fields, "density": case.density, "storage": options.storage}
    common |= facts(steps[CLIENTS])

    def rows() -> Iterator[Row]:
        for name in list(steps)[1:]:
            peer = {f"peer_{key}": value for key, value in facts(steps[name]).items()}
            fields = {"peer_name": name, **common, **peer}
            yield compare(f"{case.name}: {name}", timings[CLIENTS], timings[name], **fields)

    return collect(rows()), by_operator(steps[CLIENTS], case.model.batch, options.repeats)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    quick = {"model": "cnn2", "batch": 8, "repeats": 3, "warm_up": 1}
    parser = Parser(__doc__.splitlines()[0], quick)
    parser.add_argument("--model", default="resnet32", choices=MODELS)
    parser.add_argument("--norm", default="group", choices=["group", "batch"])
    parser.add_argument("--scheme", default="block", help="a scheme of mest-fed")
    parser.add_argument("--density", type=share, default=0.1, help="1: a dense model")
    parser.add_argument(
        "--passes", nargs="*", choices=PASSES, default=[*PASSES], help="to do without, each alone"
    )
    parser.add_argument("--groups", type=positive, nargs="*", help="images of other groups")
    parser.add_argument("--storage", choices=STORAGE, default="fp32", help="of planes")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--batch", type=positive, help="images; default: 64, resnet18 32")
    parser.add_argument("--width", type=share, help="a smaller model, to try the benchmark")
    parser.add_argument("--repeats", type=positive, default=15, help="timed steps of each")
    parser.add_argument("--warm-up", type=positive, default=3, help="untimed steps of each")
    options = parser.parse_args(arguments)
    layout_for(options.scheme, (1, 1, 3, 3))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    keep_memory()
    own = MODELS[options.model]
    model = replace(own, width=options.width or own.width, batch=options.batch or own.batch)
    scheme = options.scheme if options.density < 1 else DENSE
    case = Case(model, options.norm, scheme, options.density, options.threads)
    with torch_threads(options.threads):
        rows, operators = measure(case, options)
    show(f"{case.name}, compiled, measured: ms", rows, COLUMNS)
    show("The client's step by operator, measured: ms of the processor", operators, OPERATORS)
    if options.json:
        versions = software("torch", "numpy")
        write_json(options.json, rows, software=versions, operators=operators)


if __name__ == "__main__":
    run(main)
