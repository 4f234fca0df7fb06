"""One training step of a whole model: ours, made sparse, against the same model of dense torch.

A step is forward, cross-entropy, backward, SGD with momentum, and clearing the gradients; both
sides start from the same weights, see the same batch, and are timed in turn. Times are measured.

Beside the measured ``ratio`` stands how much there was to win. Only some layers can be sparse, so

- ``measured_share``: the part of the dense step that is spent in those layers, from a third
  contestant, the dense model with a clock at each of them; ``measured_optimizer_share``: the part
  of its optimizer;
- ``modelled_possible_by_layers``: the ratio if each of those layers took its dense time multiplied
  by its density and all else its own, 1 / (1 - share + sum of share * density) (Amdahl);
- ``modelled_possible``: the same if the optimizer's time falls with the number of weights too;
- ``reached``: measured ratio / modelled_possible;
- ``modelled_flops_ratio``: dense operations / ours, of convolutions and linear layers alone.

    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --models cnn2 --schemes block --densities 0.1 --threads 1
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from amdahl import clocked_step, modelled_limits, operations
from command_line import Parser, collect, positive, run, share, show
from harness import Row, compare, in_turn, keep_memory, software, write_json
from layer_clock import LayerClock
from train_contestants import dense, ours
from tuned import set_kernels

from mest_fed.kernels import torch_threads
from mest_fed.nn import SparseLayer, build_model, sparsifiable
from mest_fed.rng import torch_generator
from mest_fed.sparsity import layout_for

IMAGE, CLASSES = (3, 32, 32), 10
SCHEMES = ["block", "unstructured"]


@dataclass(frozen=True)
class Model:
    """A model, its width and the images of a batch."""

    name: str
    width: float
    batch: int


MODELS = {
    "resnet32": Model("resnet32", 2.0, 64),  # MEST's
    "resnet18": Model("resnet18", 1.0, 32),
    "cnn2": Model("cnn2", 1.0, 64),
}
COLUMNS = {
    "model": "model",
    "scheme": "scheme",
    "density": "density",
    "threads": "threads",
    "ours": "ours",
    "dense": "peer",
    "ratio": "ratio",
    "forward": "ratio_forward",
    "backward": "ratio_backward",
    "optimizer": "ratio_optimizer",
    "share": "measured_share",
    "possible, modelled": "modelled_possible",
    "reached": "reached",
}


@dataclass(frozen=True)
class Case:
    """One model under one scheme, density and number of threads."""

    model: Model
    scheme: str
    density: float
    threads: int

    @property
    def name(self) -> str:
        """Name of its row."""
        model = f"{self.model.name}, batch {self.model.batch}"
        return f"{model}, {self.scheme}, density {self.density:g}, threads {self.threads}"

    def build(self) -> torch.nn.Module:
        """Build the dense model, the same each time."""
        generator = torch_generator(0, self.model.name)
        options = {"width": self.model.width, "norm": "batch"}
        return build_model(self.model.name, IMAGE, CLASSES, generator=generator, **options)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw images and labels."""
        generator = torch_generator(0, "batch")
        images = torch.randn(self.model.batch, *IMAGE, generator=generator)
        return images, torch.randint(CLASSES, (self.model.batch,), generator=generator)


def measure(case: Case, repeats: int, warm_up: int, kernels: str) -> Row:
    """Time a case and model what was possible."""
    images, labels = case.batch()
    sparse = ours(case.build(), case.scheme, case.density)
    clocked = dense(case.build())
    clock = LayerClock(sparsifiable(clocked.model).values())
    contestants = {
        "ours": partial(sparse, images, labels),
        "dense": partial(dense(case.build()), images, labels),
        "clocked": partial(clocked_step, clocked, clock, images, labels),
    }
    set_kernels(sparse.model, IMAGE, len(images), kernels)
    timings = in_turn(contestants, repeats, warm_up)
    row = compare(
        case.name,
        timings["ours"],
        timings["dense"],
        peer_name="dense",
        model=case.model.name,
        width=case.model.width,
        batch=case.model.batch,
        scheme=case.scheme,
        threads=case.threads,
        choices=choices(sparse.model),
    )
    row |= modelled_limits(timings["clocked"], case.build(), sparse.model)
    row["reached"] = round(row["ratio"] / row["modelled_possible"], 3)
    return row | operations(case.build(), sparse.model, IMAGE)


def choices(model: torch.nn.Module) -> dict[str, int]:
    """Count the implementations that the sparse layers chose."""
    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    names = [str(choice) for layer in layers if (choice := getattr(layer, "choice", None))]
    return {name: names.count(name) for name in sorted(set(names))}


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of the command line."""
    grid = (options.threads, options.models, options.schemes, options.densities)
    for threads, name, scheme, density in itertools.product(*grid):
        own = MODELS[name]
        model = Model(name, options.width or own.width, options.batch or own.batch)
        yield Case(model, scheme, density, threads)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    quick = {"models": ["cnn2"], "schemes": ["block"], "densities": [0.1], "batch": 8}
    parser = Parser(__doc__.splitlines()[0], quick | {"repeats": 3, "warm_up": 1})
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=MODELS)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, help="schemes of mest-fed")
    parser.add_argument("--densities", nargs="+", type=share, default=[0.1, 0.05])
    parser.add_argument("--threads", nargs="+", type=positive, default=[1, 2])
    parser.add_argument("--batch", type=positive, help="images; default: 64, resnet18 32")
    parser.add_argument("--width", type=share, help="a smaller model, to try the benchmark")
    parser.add_argument("--kernels", choices=["tuned", "rule"], default="tuned")
    parser.add_argument("--repeats", type=positive, default=15, help="timed steps of each")
    parser.add_argument("--warm-up", type=positive, default=3, help="untimed steps of each")
    options = parser.parse_args(arguments)
    for scheme in options.schemes:
        layout_for(scheme, (1, 1, 3, 3))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    keep_memory()

    def rows() -> Iterator[Row]:
        for case in cases(options):
            with torch_threads(case.threads):
                yield measure(case, options.repeats, options.warm_up, options.kernels)

    done = collect(rows())
    show("One training step, measured: ms; ratio = times better", done, COLUMNS)
    if options.json:
        versions = software("torch", "numpy")
        write_json(
            options.json, done, software=versions, cpu=torch.backends.cpu.get_cpu_capability()
        )


if __name__ == "__main__":
    run(main)
