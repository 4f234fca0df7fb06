"""The thread that takes samples."""

import threading
import time

from sampling import Sampler


class Counting(Sampler):
    """Counts its samples; every second one sees nothing."""

    def __init__(self):
        super().__init__(0.001)
        self.taken = 0
        self.enough = threading.Event()

    def take(self):
        self.taken += 1
        if self.taken >= 10:
            self.enough.set()
        return self.taken if self.taken % 2 else None


def test_samples_are_taken_until_the_block_ends_and_nothing_seen_is_none():
    with Counting() as sampler:
        assert sampler.enough.wait(10)
    taken = sampler.taken
    assert sampler.samples == list(range(1, taken + 1, 2))
    time.sleep(0.02)
    assert sampler.taken == taken
