"""Samples of something that changes, taken at short intervals in a thread of their own."""

import threading
from abc import ABC, abstractmethod
from typing import Generic, Self, TypeVar

Sample = TypeVar("Sample")


class Sampler(ABC, Generic[Sample]):
    """Takes samples from the beginning of a block to its end.

    Parameters
    ----------
    interval : float
        Seconds from the end of a sample to the beginning of the next.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @abstractmethod
    def take(self) -> Sample | None:
        """Return a sample; None if there is nothing to see."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            found = self.take()
            if found is not None:
                self.samples.append(found)
            self._stop.wait(self.interval)
