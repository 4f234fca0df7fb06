"""Random generators derived from a run seed and a path, such as (seed, round, client, purpose).

Nothing in mest-fed draws from a global generator: every draw names where it comes from, so that
the same seed gives the same bits on one worker or a hundred.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *path: int | str) -> int:
    """Derive a 63-bit seed from a run seed and a path.

    Parameters
    ----------
    seed : int
        The run's seed.
    *path : int or str
        What the draw is for, for example ``3, 17, "batches"``. Distinct paths give independent
        seeds; ``1`` and ``"1"`` are distinct.
    """
    text = "/".join(f"{type(part).__name__}:{part}" for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *path: int | str) -> "torch.Generator":
    """Return a CPU ``torch.Generator`` for the path; see :func:`derive_seed`."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *path))


def numpy_generator(seed: int, *path: int | str) -> np.random.Generator:
    """Return a NumPy generator for the path; see :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(seed, *path))


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), NumPy and Python for code that draws from them.

    Afterwards they are as they were.
    """
    import torch

    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def in_random_order(total: int, generator: np.random.Generator) -> Iterator[int]:
    """Yield 0 to ``total`` - 1 in random order, at a cost that follows what is taken.

    The algorithm of Fisher and Yates, as Durstenfeld (1964) has it, which keeps only what it moved.
    """
    moved: dict[int, int] = {}
    for position in range(total):
        other = int(generator.integers(position, total))
        yield moved.get(other, other)
        moved[other] = moved.pop(position, position)
