"""One sparse layer, forward and both backward passes: ours against dense torch and SparseProp.

Ours is there twice: ``layer``, the module by torch, whose kernels take and give tensors in C order,
and ``compiled``, the operators that stand for it in a compiled step, on planes in place: nothing is
packed, copied or allocated. layer_program.py says how they are taken out of a step, and what a
network has that a layer alone has not: the figure that counts for training is train_step.py's. So
``compiled`` stands beside dense torch's layer, which allocates and runs under autograd as in its
own network, and beside no other peer. Where a compiled layer still copies (whole channels), the
copies are timed; ``planes_in_place`` says whether all four of its buffers are planes.

All contestants get the same float32 input, which requires a gradient, the same output gradient and
the same number of threads, and are timed in turn in one process. "dense" is torch's own layer
(oneDNN, MKL). All figures measured.

Between two turns of a layer the others run, so that its planes come from memory, as they do within
a network; ``--caches warm`` times a layer that has just run.

    python benchmarks/kernels.py --json kernels.json
    python benchmarks/kernels.py --layers 64@16 --schemes block --densities 0.1 --threads 1

SparseProp (Nikdan et al. 2023) needs a processor with AVX2 and a C++ compiler. A plain ``pip
install sparseprop`` fails: its set-up calls pip and pybind11, which an isolated build does not see.
In an activated environment that has torch, this builds version 0.1.14 as it is::

    pip install setuptools wheel pybind11 scipy
    pip install --no-build-isolation sparseprop

It is left out, with a notice, where it cannot be imported. It has two convolutions, vectorised over
the batch and over the row; each row shows the one with the smaller median. It uses OpenMP through
the runtime that torch has loaded, so ``--threads`` holds for it too. Its results are compared with
dense ones first, and where they differ (0.1.14's strided and batch-vectorised convolutions do, for
a batch that is no multiple of 8) it is left out of the row, with a notice.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from command_line import Parser, collect, positive, run, share, show
from harness import (
    Contestant,
    Row,
    Timings,
    compare,
    in_turn,
    keep_memory,
    software,
    write_json,
)
from layer_program import LayerProgram
from layer_shapes import LAYERS
from sparseprop_peer import WHY_ABSENT, sparseprop_layers, weight_gradient
from torch import Tensor, nn
from tuned import set_kernels

from mest_fed.errors import InputError
from mest_fed.kernels import torch_threads
from mest_fed.nn import SparseConv2d, SparseLayer, SparseLinear
from mest_fed.nn.slots import scattered
from mest_fed.rng import torch_generator
from mest_fed.sparsity import layout_for, magnitude_mask

SCHEMES = ["unstructured", "block:4", "block:8", "pattern", "channel"]
PEERS = ["dense", "sparseprop"]

COLUMNS = {
    "layer": "layer",
    "scheme": "scheme",
    "density": "density",
    "threads": "threads",
    "ours is": "contestant",
    "chosen": "choice",
    "peer": "peer_name",
    "ours": "ours",
    "peer's": "peer",
    "ratio": "ratio",
    "forward": "ratio_forward",
    "backward": "ratio_backward",
}


@dataclass(frozen=True)
class Case:
    """One layer under one scheme, density and number of threads."""

    layer: str
    scheme: str
    density: float
    batch: int
    threads: int
    kernels: str
    unmeasured: int

    @property
    def name(self) -> str:
        """Name of its rows."""
        return f"{self.layer}, {self.scheme}, density {self.density:g}, threads {self.threads}"


@dataclass(frozen=True)
class Work:
    """What each contestant of a case does in a run."""

    x: Tensor
    gradient: Tensor
    unmeasured: int = 0

    def warm(self, run: Contestant) -> Mapping[str, float] | None:
        """Run a contestant a few times in a row, and give the seconds of the last run."""
        for _ in range(self.unmeasured):
            run()
        return run()

    def __call__(self, layer: nn.Module) -> dict[str, float]:
        """Run a layer forward and backward; gradients of the run before are cleared untimed."""
        self.x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None
        start = time.perf_counter()
        y = layer(self.x)
        middle = time.perf_counter()
        y.backward(self.gradient)
        return {"forward": middle - start, "backward": time.perf_counter() - middle}


def sparse_layer(scheme: str, density: float, dense: nn.Conv2d | nn.Linear) -> SparseLayer:
    """Return our layer with the weights of largest magnitude."""
    layout = layout_for(scheme, tuple(dense.weight.shape))
    mask = magnitude_mask(layout, dense.weight.detach().numpy(), layout.count_for(density))
    if isinstance(dense, nn.Conv2d):
        return SparseConv2d(layout, mask, dense)
    return SparseLinear(layout, mask, dense)


def agree(work: Work, layer: nn.Module, masked: nn.Module) -> bool:
    """Say whether a layer gives the output and both gradients of its dense form."""
    results = []
    for module in (layer, masked):
        work(module)
        with torch.no_grad():
            results.append((module(work.x), work.x.grad, active_gradient(module, masked)))
    pairs = zip(*results, strict=True)
    return all((a - b).abs().max() <= 1e-3 * b.abs().max() for a, b in pairs)


def active_gradient(layer: nn.Module, masked: nn.Module) -> Tensor:
    """Return the gradient of the active weights, in the order of the dense weight."""
    active = masked.weight != 0
    if layer is masked:
        return masked.weight.grad[active]
    if isinstance(layer, SparseLayer):
        return scattered(layer.layout, layer.values.grad, layer.slots)[active]
    return weight_gradient(layer)


def measure(
    case: Case, peers: list[str], repeats: int, warm_up: int, notices: list[str]
) -> Iterator[Row]:
    """Time a case; yield a row for each peer."""
    shape, generator = LAYERS[case.layer], torch_generator(0, case.layer)
    dense = shape.layer(generator)
    ours = sparse_layer(case.scheme, case.density, dense)
    x = shape.input(case.batch, generator)
    gradient = torch.randn(dense(x).shape, generator=generator)
    work = Work(x, gradient, case.unmeasured)
    layers: dict[str, nn.Module] = {"dense": dense, "ours": ours}
    masked = ours.to_dense()
    if not agree(work, ours, masked):
        raise RuntimeError(f"{case.name}: our results differ from dense ones")
    if "sparseprop" in peers:
        for name, layer in sparseprop_layers(masked).items():
            if agree(work, layer, masked):
                layers[name] = layer
            else:
                notices.append(f"{case.name}: {name} is left out, its results are wrong")
    program = LayerProgram(ours, x, gradient, case.threads)
    if not program_agrees(program, work, ours):
        raise RuntimeError(f"{case.name}: the compiled layer's results differ from dense ones")
    runs: dict[str, Contestant] = {name: partial(work, layer) for name, layer in layers.items()}
    runs["compiled"] = program
    set_kernels(ours, x.shape[1:], len(x), case.kernels)
    contestants = {name: partial(work.warm, one) for name, one in runs.items()}
    timings = in_turn(contestants, repeats, warm_up)
    fields = {
        "layer": case.layer,
        "scheme": case.scheme,
        "density": round(ours.mask.density, 4),
        "batch": case.batch,
        "threads": case.threads,
    }
    choice = str(getattr(ours, "choice", None) or "") or None
    best = best_variants(timings, peers)
    for peer, variant in best.items():
        more = {"peer_name": variant, "contestant": "layer", **fields, "choice": choice}
        name = f"{case.name}, against {peer}"
        yield compare(name, timings["ours"], timings[variant], **more)
    if "dense" in best:
        name, planes = f"{case.name}, compiled, against dense", program.in_place
        more = {"peer_name": "dense", "contestant": "compiled", "planes_in_place": planes, **fields}
        yield compare(name, timings["compiled"], timings["dense"], **more)


def program_agrees(program: LayerProgram, work: Work, layer: SparseLayer) -> bool:
    """Say whether a compiled layer gives the output and both gradients of its module."""
    work(layer)
    with torch.no_grad():
        wanted = [layer(work.x), work.x.grad, layer.values.grad.flatten()]
    program()
    made = [*program.results(), program.weight_gradient().reshape(-1)]
    pairs = zip(map(torch.from_numpy, made), wanted, strict=True)
    return all((a - b).abs().max() <= 1e-3 * b.abs().max() for a, b in pairs)


def best_variants(timings: dict[str, Timings], peers: list[str]) -> dict[str, str]:
    """Return the fastest contestant of each peer that has one."""
    found: dict[str, str] = {}
    for peer in peers:
        variants = [name for name in timings if name.startswith(peer)]
        if variants:
            found[peer] = min(variants, key=lambda name: timings[name]["total"].median)
    return found


def cases(options: argparse.Namespace) -> list[Case]:
    """Return the cases of the command line."""
    found = []
    unmeasured = 2 if options.caches == "warm" else 0
    for threads, layer in itertools.product(options.threads, options.layers):
        shape = LAYERS[layer]
        # Patterns are of 3x3 kernels; a linear layer of that scheme takes blocks.
        schemes = [s for s in options.schemes if shape.side or s != "pattern"]
        for scheme, density in itertools.product(schemes, options.densities or shape.densities):
            found.append(
                Case(
                    layer,
                    scheme,
                    density,
                    options.batch or shape.batch,
                    threads,
                    options.kernels,
                    unmeasured,
                )
            )
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    quick = {"layers": ["64@16", "768-3072"], "schemes": ["unstructured", "block:4"]}
    quick |= {"densities": [0.05], "batch": 8, "repeats": 3, "warm_up": 1}
    parser = Parser(__doc__.splitlines()[0], quick)
    parser.add_argument("--layers", nargs="+", default=[*LAYERS], choices=LAYERS)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, help="schemes of mest-fed")
    parser.add_argument("--densities", nargs="+", type=share, help="default: each layer's own")
    parser.add_argument("--threads", nargs="+", type=positive, default=[1, 2])
    parser.add_argument("--batch", type=positive, help="default: each layer's own, 32 or 512")
    parser.add_argument("--repeats", type=positive, default=30, help="timed runs of each")
    parser.add_argument("--warm-up", type=positive, default=5, help="untimed runs of each")
    parser.add_argument(
        "--caches",
        choices=["cold", "warm"],
        default="cold",
        help="warm: each turn runs a layer three times and times the last",
    )
    parser.add_argument("--kernels", choices=["tuned", "rule"], default="tuned")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="default: those that import")
    options = parser.parse_args(arguments)
    for scheme in options.schemes:
        layout_for(scheme, (1, 1, 3, 3))
    if "sparseprop" in (options.peers or []) and WHY_ABSENT:
        raise InputError(f"--peers sparseprop does not import ({WHY_ABSENT})")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    keep_memory()
    notices = []
    peers = options.peers or (["dense"] if WHY_ABSENT else PEERS)
    if not options.peers and WHY_ABSENT:
        notices.append(f"SparseProp is left out ({WHY_ABSENT})")

    def rows() -> Iterator[Row]:
        for case in cases(options):
            with torch_threads(case.threads):
                yield from measure(case, peers, options.repeats, options.warm_up, notices)

    done = collect(rows())
    show(
        "One layer, forward and backward, measured: ms; ratio = times better",
        done,
        COLUMNS,
    )
    for notice in notices:
        print("notice:", notice)
    if options.json:
        versions = software("torch", "numpy", "sparseprop")
        capability = torch.backends.cpu.get_cpu_capability()
        write_json(options.json, done, software=versions, cpu=capability, notices=notices)


if __name__ == "__main__":
    run(main)
