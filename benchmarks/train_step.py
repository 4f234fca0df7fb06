"""One training step of a whole model: compiled and by torch, against the same model of dense torch.

A step is forward, cross-entropy, backward, SGD with momentum, and clearing the gradients. All
contestants start from the same weights, see the same batch, and are timed in turn in one process.
Times are measured: of the processor with one thread, of the clock with more.

- ``compiled``: the step as a client trains where nothing else is said; ``compiled-bf16``: with
  planes stored in 16 bits;
- ``torch``: the same with ``training.engine = "torch"``;
- ``dense-bf16``: dense torch under autocast (slow where the processor has no such products).

Each is one row; its peer is the dense model in torch's own operators, in 32 bits. A density of 1
leaves our model dense.

Beside the measured ``ratio`` stands how much there was to win, by a contestant more, ``clocked``:
the dense model with a clock at each layer that can be sparse.

- ``measured_share``: the part of the dense step that is spent in those layers;
  ``measured_optimizer_share``: the part of its optimizer;
- ``modelled_possible_by_layers``: the ratio if each of those layers took its dense time multiplied
  by its density and all else its own, 1 / (1 - share + sum of share * density) (Amdahl);
- ``modelled_possible``: the same if the optimizer's time falls with the number of weights too;
- ``reached``: measured ratio / modelled_possible;
- ``modelled_flops_ratio``: dense operations / ours, of convolutions and linear layers alone.

Compiled steps exceed what is modelled where they also shorten the rest.

    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --models cnn2 --densities 1 --contestants compiled torch
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from amdahl import clocked_step, modelled_limits, operations
from command_line import Parser, collect, positive, run, share, show
from harness import Contestant, Row, compare, in_turn, keep_memory, software, write_json
from layer_clock import LayerClock
from train_contestants import (
    DENSE,
    IMAGE,
    MODELS,
    Case,
    by_torch,
    compiled,
    dense,
    facts,
    run_compiled,
)
from tuned import set_kernels

from mest_fed.errors import InputError
from mest_fed.kernels import torch_threads
from mest_fed.nn import SparseLayer, sparsifiable
from mest_fed.runtime.step import CompiledStep
from mest_fed.sparsity import layout_for

SCHEMES = ["block", "unstructured"]
#: Contestant -> what its planes are stored as.
COMPILED = {"compiled": "fp32", "compiled-bf16": "bf16"}
CONTESTANTS = [*COMPILED, "torch", "dense-bf16", "clocked"]
COLUMNS = {
    "model": "model",
    "norm": "norm",
    "scheme": "scheme",
    "density": "density",
    "threads": "threads",
    "contestant": "contestant",
    "ms": "ours",
    "dense": "peer",
    "ratio": "ratio",
    "forward": "ratio_forward",
    "backward": "ratio_backward",
    "optimizer": "ratio_optimizer",
    "share": "measured_share",
    "possible, modelled": "modelled_possible",
    "reached": "reached",
}


def measure(case: Case, chosen: Sequence[str], options: argparse.Namespace) -> Iterator[Row]:
    """Time a case and model what was possible; yield a row for each contestant."""
    batch, clock = case.batch(), case.clock
    steps = compiled_steps(case, chosen)
    chosen = [it for it in chosen if it not in COMPILED or it in steps]
    said = {name: facts(step) for name, step in steps.items()}
    timed: dict[str, Contestant] = {
        name: partial(run_compiled, step, *batch) for name, step in steps.items()
    }
    timed[DENSE] = partial(dense(case.build(), clock), *batch)
    if "torch" in chosen:
        ours = by_torch(case.build_sparse(), clock)
        set_kernels(ours.model, IMAGE, case.model.batch, options.kernels)
        timed["torch"], said["torch"] = partial(ours, *batch), {"choices": choices(ours.model)}
    if "dense-bf16" in chosen:
        timed["dense-bf16"] = partial(dense(case.build(), clock, bf16=True), *batch)
    if "clocked" in chosen:
        clocked = dense(case.build(), clock)
        layers = LayerClock(sparsifiable(clocked.model).values(), clock)
        timed["clocked"] = partial(clocked_step, clocked, layers, *batch)
    timings = in_turn(timed, options.repeats, options.warm_up, clock)
    plain, sparse = case.build(), case.build_sparse()
    common = case.fields | operations(plain, sparse, IMAGE)
    if "clocked" in chosen:
        common |= modelled_limits(timings["clocked"], plain, sparse)
    for name in chosen:
        if name != "clocked":
            fields = {"contestant": name, **common, **said.get(name, {})}
            row = compare(
                f"{case.name}: {name}", timings[name], timings[DENSE], peer_name=DENSE, **fields
            )
            if name != "dense-bf16" and "clocked" in chosen:
                row["reached"] = round(row["ratio"] / row["modelled_possible"], 3)
            yield row


def compiled_steps(case: Case, chosen: Sequence[str]) -> dict[str, CompiledStep]:
    """Make the compiled contestants, but for those that have nothing to store as asked."""
    steps = {}
    for name, storage in COMPILED.items():
        if name in chosen:
            with suppress(*([] if storage == "fp32" else [InputError])):
                steps[name] = compiled(
                    case.build_sparse(), case.model.batch, case.threads, storage=storage
                )
    return steps


def choices(model: torch.nn.Module) -> dict[str, int]:
    """Count the implementations that the sparse layers chose."""
    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    names = [str(choice) for layer in layers if (choice := getattr(layer, "choice", None))]
    return {name: names.count(name) for name in sorted(set(names))}


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of the command line."""
    for threads, name, norm in itertools.product(options.threads, options.models, options.norm):
        own = MODELS[name]
        if not own.has_norms and norm != options.norm[0]:
            continue
        model = replace(own, width=options.width or own.width, batch=options.batch or own.batch)
        densities = options.densities or own.densities
        sparse = [density for density in densities if density < 1]
        for scheme, density in itertools.product(options.schemes, sparse):
            yield Case(model, norm, scheme, density, threads)
        if len(sparse) < len(densities):
            yield Case(model, norm, DENSE, 1.0, threads)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    quick = {"models": ["cnn2"], "schemes": ["block"], "densities": [0.1, 1.0], "batch": 8}
    quick |= {"threads": [1], "repeats": 3, "warm_up": 1}
    parser = Parser(__doc__.splitlines()[0], quick)
    parser.add_argument(
        "--contestants",
        nargs="+",
        default=CONTESTANTS,
        choices=CONTESTANTS,
        help="against dense torch; without clocked nothing is modelled",
    )
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=MODELS)
    parser.add_argument("--norm", nargs="+", default=["group"], choices=["group", "batch"])
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, help="schemes of mest-fed")
    parser.add_argument(
        "--densities", nargs="+", type=share, help="1: a dense model; default: each model's own"
    )
    parser.add_argument("--threads", nargs="+", type=positive, default=[1, 2])
    parser.add_argument("--batch", type=positive, help="images; default: 64, resnet18 32")
    parser.add_argument("--width", type=share, help="a smaller model, to try the benchmark")
    parser.add_argument("--kernels", choices=["tuned", "rule"], default="tuned", help="by torch")
    parser.add_argument("--repeats", type=positive, default=15, help="timed steps of each")
    parser.add_argument("--warm-up", type=positive, default=3, help="untimed steps of each")
    options = parser.parse_args(arguments)
    for scheme in options.schemes:
        layout_for(scheme, (1, 1, 3, 3))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    chosen = [name for name in CONTESTANTS if name in options.contestants]
    keep_memory()

    def rows() -> Iterator[Row]:
        for case in cases(options):
            with torch_threads(case.threads):
                yield from measure(case, chosen, options)

    done = collect(rows())
    show("One training step, measured: ms; ratio = times better than dense torch", done, COLUMNS)
    if options.json:
        versions = software("torch", "numpy")
        write_json(
            options.json, done, software=versions, cpu=torch.backends.cpu.get_cpu_capability()
        )


if __name__ == "__main__":
    run(main)
