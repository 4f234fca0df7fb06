"""What keeps clients apart from each other and from the server, in whatever process they run.

A client on a device has records of its own and a process of its own. Here many clients share a
process, and with no workers they share the server's. Two things would leak from one to another:
records, which are mutable, and the state that torch, NumPy and Python keep for a whole process.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict

from simulations.engine.flower_internals import copy_arrays


def private_copy(records: RecordDict) -> RecordDict:
    """Copy all of records that can be edited: records, arrays and lists.

    The data of arrays are bytes, which cannot be edited, so that they are shared: a copy costs
    less than a microsecond for each array, however large.
    """
    copies = RecordDict()
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            copies[name] = copy_arrays(record)
            continue
        copies[name] = fresh = record.copy()
        for key, value in fresh.items():
            if isinstance(value, list):
                fresh[key] = list(value)
    return copies


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: with more, sums have other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Generators:
    """The global generators of :mod:`random`, NumPy and torch, as clients find them.

    A client that draws from them (to shuffle, to drop out, to add noise) draws the same in every
    process, whatever ran there before. A server that runs in the same process draws from them, too:
    Flower's strategies sample nodes by :mod:`random`, and its differential privacy takes its noise
    from NumPy.
    """

    def __init__(self) -> None:
        self._bits = np.random.MT19937(0)
        # The one for all devices takes 80 us; without a GPU there is the CPU's generator alone.
        on_gpu = torch.cuda.is_available()
        self._seed_torch = torch.manual_seed if on_gpu else torch.default_generator.manual_seed

    def begin_at(self, seed: int) -> None:
        """Seed them; ``seed`` is from 0 to 2**63 - 1."""
        random.seed(seed)
        np.random.set_bit_generator(self._bits)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - what clients draw from
        self._seed_torch(seed)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put them back after the block to where they were. Takes 0.1 ms."""
        python, native = random.getstate(), torch.default_generator.get_state()
        bits = np.random.get_bit_generator()
        # The state holds half of a pair of normal draws as well, which the generator does not.
        state = np.random.get_state(legacy=False)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            torch.default_generator.set_state(native)
            np.random.set_bit_generator(bits)
            np.random.set_state(state)  # noqa: NPY002


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Have torch compute on one thread, record gradients and make float32 tensors in the block.

    What a client sets instead does not outlive it.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with one_thread(), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
