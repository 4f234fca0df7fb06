"""One process of a training under DistributedDataParallel: ``RANK WORLD FOLDER``.

It writes what came of each method to FOLDER/RANK.pt. A world of 1 trains without a wrapper.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from nn_cases import draw, seeded
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mest_fed.errors import InputError
from mest_fed.nn import Mutator, sparsify
from mest_fed.sparsity import Bounds, MestEM, MestEMS, Method, RigL

BATCH, STEPS = 8, 3
GROW = Bounds(ceiling=1.5)


def build(scheme: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    body = [nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.Flatten()]
    model = seeded(nn.Sequential(*body, nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 3)))
    sparsify(model, scheme, 0.5)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def wrap(model: nn.Module, world: int) -> nn.Module:
    return DistributedDataParallel(model) if world > 1 else model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world: int) -> None:
    share = BATCH // world
    for step in range(STEPS):
        x = draw(BATCH, 1, 6, 6, seed=step)[rank * share : (rank + 1) * share]
        labels = torch.arange(BATCH)[rank * share : (rank + 1) * share] % 3
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()


def generators(name: str) -> np.random.Generator:
    return np.random.default_rng(len(name))


def constant(method: Method, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Train, replace a share of the weights, train on, twice."""
    model, optimizer = build("block")
    wrapped = wrap(model, world)
    mutator = Mutator(wrapped, method, optimizer)
    for _ in range(2):
        mutator.keep_dense_gradients(True)
        train(wrapped, optimizer, rank, world)
        mutator.mutate(Bounds(floor=0.6), generators)
    train(wrapped, optimizer, rank, world)
    return model.state_dict()


def growing(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Grow above the target, train, drop: the wrapper is made anew for each."""
    model, optimizer = build("unstructured")
    mutator = Mutator(model, MestEMS(), optimizer)
    wrapped = wrap(model, world)
    train(wrapped, optimizer, rank, world)
    del wrapped
    mutator.grow(GROW, generators)
    wrapped = wrap(model, world)
    train(wrapped, optimizer, rank, world)
    del wrapped
    mutator.drop()
    train(wrap(model, world), optimizer, rank, world)
    return model.state_dict()


def trained(rank: int, world: int) -> dict[str, object]:
    return {
        "em": constant(MestEM(), rank, world),
        "rigl": constant(RigL(), rank, world),
        "growing": growing(rank, world),
    }


def refused(rank: int, world: int) -> dict[str, object]:
    """Try what needs another shape while the wrapper is there; then train on."""
    model, optimizer = build("block")
    mutator = Mutator(model, MestEMS(), optimizer)
    wrapped = wrap(model, world)
    train(wrapped, optimizer, rank, world)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = []
    attempts = {
        "grow": lambda: mutator.grow(GROW, generators),
        "mutate": lambda: mutator.mutate(GROW, generators),
        "load": lambda: model[2].load(model[2].slots[:2], model[2].values[:2].detach()),
        "sparsify": lambda: sparsify(wrapped, "block", 0.5),
    }
    for attempt in attempts.values():
        try:
            attempt()
        except InputError as error:
            said.append(str(error))
    unchanged = all(torch.equal(before[name], it) for name, it in model.state_dict().items())
    train(wrapped, optimizer, rank, world)
    return {"said": said, "attempts": list(attempts), "unchanged": unchanged}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    found = {**trained(rank, world), "refused": refused(rank, world)}
    dist.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    # On a busy machine, gloo's threads may still run when Python ends, which aborts the process.
    sys.stdout.flush()
    os._exit(0)
