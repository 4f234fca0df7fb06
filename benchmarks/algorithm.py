"""The algorithm itself, centrally: MEST's methods and their rivals on CIFAR-10, no federation.

Each trains one network on the whole training set by SGD with a cosine rate, as MEST's scripts do
(batch 64, rate 0.1, weight decay 1e-4, flips and shifts), masks mutating at the beginning of an
epoch. It computes where ``--device`` says: a GPU takes minutes where a CPU takes hours. Rows of
``--json`` that are there already, of the same settings, stay: what breaks off goes on.

    python benchmarks/algorithm.py --data FOLDER --device cuda --epochs 160 --json algorithm.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import Parser, positive, run, show
from harness import Row, software, write_json
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mest_fed.data import DataSplit, load_dataset
from mest_fed.errors import not_allowed
from mest_fed.nn import Mutator, Sparsity, build_model
from mest_fed.rng import numpy_generator, torch_generator
from mest_fed.sparsity import Interval, Method, build_method
from mest_fed.training import learning_rate as rate_at

BATCH, RATE, DECAY, PADDING = 64, 0.1, 1e-4, 4
DENSE = "dense"
METHODS = (DENSE, "static", "set", "rigl", "mest-em", "mest-ems")
COLUMNS = {
    "method": "name",
    "accuracy": "ours",
    "by seed": "by_seed",
    "dense": "peer",
    "points lost": "points_lost",
    "minutes": "minutes",
}


class Images:
    """A part of the data set on the computing device.

    Parameters
    ----------
    data : DataSplit
        Training and test set.
    count : int
        Training images that are used.
    device : torch.device
        Where.
    """

    def __init__(self, data: DataSplit, count: int, device: torch.device) -> None:
        train, test = data.train, data.test
        self.mean, self.std = (
            torch.tensor(each, device=device).view(-1, 1, 1) for each in (train.mean, train.std)
        )
        self.train, self.test = (
            torch.as_tensor(np.asarray(part.inputs)).to(device) for part in (train, test)
        )
        self.train = self.train[:count]
        self.labels, self.test_labels = (
            torch.as_tensor(np.asarray(part.targets)).to(device) for part in (train, test)
        )

    def epoch(self, generator: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches in a drawn order, each image shifted and perhaps mirrored."""
        for rows in np.array_split(
            generator.permutation(len(self.train)), max(1, len(self.train) // BATCH)
        ):
            images = self._normal(self.train[rows])
            padded = nn.functional.pad(images, (PADDING,) * 4)
            size, shifts = (
                images.shape[-1],
                generator.integers(2 * PADDING + 1, size=(2, len(rows))),
            )
            place = torch.arange(size, device=images.device)
            down, right = (torch.as_tensor(it, device=images.device) for it in shifts)
            which = torch.arange(len(rows), device=images.device)[:, None, None]
            moved = padded.permute(0, 2, 3, 1)[
                which, (down[:, None] + place)[:, :, None], (right[:, None] + place)[:, None, :]
            ].permute(0, 3, 1, 2)
            mirrored = torch.as_tensor(generator.random(len(rows)) < 0.5, device=images.device)
            images = torch.where(mirrored[:, None, None, None], moved.flip(-1), moved)
            yield images.contiguous(), self.labels[rows]

    def accuracy(self, model: nn.Module) -> float:
        """Return the share of the test set that a model classifies rightly."""
        model.eval()
        with torch.no_grad():
            right = [
                (model(self._normal(images)).argmax(1) == labels).sum()
                for images, labels in zip(
                    self.test.split(500), self.test_labels.split(500), strict=True
                )
            ]
        model.train()
        return float(torch.stack(right).sum()) / len(self.test)

    def _normal(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return (images - self.mean) / self.std


def train(name: str, seed: int, images: Images, options: argparse.Namespace) -> float:
    """Train by a method from a seed; return the accuracy on the test set."""
    method: Method = build_method(name, options.density)
    sparsity = Sparsity(options.scheme, options.density) if method.sparse else None
    shape = tuple(images.train.shape[1:])
    generator = torch_generator(seed, "model")
    model = build_model(
        options.model, shape, 10, generator=generator, norm="batch", sparsity=sparsity
    ).to(images.train.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)
    mutator = Mutator(model, method, optimizer) if sparsity else None
    epochs, order = options.epochs, numpy_generator(seed, "batches")
    interval = Interval(epochs, period=1 / epochs)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate_at("cosine", RATE, epoch / epochs)
        for number, (inputs, labels) in enumerate(images.epoch(order)):
            due = mutator is not None and number == 0 and epoch > 0
            if due:
                mutator.keep_dense_gradients(True)
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model(inputs), labels).backward()
            if due:
                mutator.step(epoch, interval, seed)
            optimizer.step()
    return images.accuracy(model)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what runs that are compared have alike."""
    names = ("model", "scheme", "density", "epochs", "images")
    return {name: getattr(options, name) for name in names}


def known_runs(path: Path | None, settings: dict[str, Any]) -> dict[tuple[str, int], list[float]]:
    """Return accuracy and minutes by method and seed of a file of the same settings.

    Raises
    ------
    InputError
        If the file is of other settings.
    """
    if path is None or not path.exists():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if table.get(name) != value:
            raise not_allowed(f"--json {path}: its {name}", table.get(name), f"{value}, as here")
    return {(name, seed): [accuracy, took] for name, seed, accuracy, took in table["done"]}


def rows_of(done: dict[tuple[str, int], list[float]]) -> list[Row]:
    """Return a row for each method that has run."""
    by_name: dict[str, list[list[float]]] = {}
    for (name, _), found in done.items():
        by_name.setdefault(name, []).append(found)
    means = {name: statistics.mean(it[0] for it in runs) for name, runs in by_name.items()}
    dense = means.get(DENSE)
    rows: list[Row] = []
    for name, runs in by_name.items():
        accuracies = [it[0] for it in runs]
        rows.append(
            {
                "name": name,
                "ours": round(means[name], 4),
                "peer": dense and round(dense, 4),
                "peer_name": DENSE,
                "unit": "accuracy on the CIFAR-10 test set, mean over seeds; measured",
                "ratio": dense and round(means[name] / dense, 4),
                "runs": len(runs),
                "points_lost": dense and round(100 * (dense - means[name]), 2),
                "by_seed": " ".join(f"{it:.4f}" for it in accuracies),
                "ours_runs": accuracies,
                "minutes": round(statistics.median(it[1] for it in runs), 1),
            }
        )
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    quick = {"epochs": 2, "images": 256, "model": "resnet8", "seeds": 1, "methods": list(METHODS)}
    parser = Parser(__doc__.splitlines()[0], quick)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's files")
    parser.add_argument("--device", default="cpu", help="of torch, such as cuda")
    parser.add_argument("--model", default="resnet32")
    parser.add_argument("--scheme", default="unstructured")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--epochs", type=positive, default=160)
    parser.add_argument("--images", type=positive, default=50_000, help="of the training set")
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    device, settings = torch.device(options.device), settings_of(options)
    done = known_runs(options.json, settings)
    images = Images(load_dataset("cifar10", str(options.data)), options.images, device)
    for seed, name in product(range(1, options.seeds + 1), options.methods):
        if (name, seed) in done:
            continue
        began = time.perf_counter()
        accuracy = train(name, seed, images, options)
        done[name, seed] = [accuracy, (time.perf_counter() - began) / 60]
        print(
            f"{name}, seed {seed}: {accuracy:.4f} in {done[name, seed][1]:.1f} minutes", flush=True
        )
        if options.json:
            facts = {"done": [[*key, *found] for key, found in done.items()]}
            facts["device"] = options.device
            write_json(
                options.json,
                rows_of(done),
                software=software("torch", "numpy"),
                **facts,
                **settings,
            )
    show(f"Central training, density {options.density:g}, measured", rows_of(done), COLUMNS)


if __name__ == "__main__":
    run(main)
