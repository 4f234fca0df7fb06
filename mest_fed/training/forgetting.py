"""Data efficiency: forget-event counts, one byte an example, and what to leave out.

Toneva et al. 2019 call an example *unforgettable* if, once learned, it is never misclassified
again. MEST counts forgetting events in situ and drops the least forgotten examples for the rest of
training. The counts stay with the client; they are never sent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mest_fed.errors import not_allowed

_CORRECT = 0x80  # classified rightly when last presented
_COUNT = 0x7F  # forgetting events, saturating below _REMOVED
_REMOVED = 0x7F  # this count means: left out
_MAX_COUNT = _REMOVED - 1

Bytes = npt.NDArray[np.uint8]
#: Positions of examples -> which of them the model answers correctly.
Judge = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class ForgettingPolicy:
    """When examples are left out, and how many.

    Parameters
    ----------
    fraction : float
        Largest share of a client's examples to leave out; 0 turns data pruning off. MEST drops
        24% of CIFAR.
    start : float
        Progress at which the examples are left out, once. MEST: epoch 70 of 160.
    readmit : bool
        Check the left-out examples now and then, and take back those that are misclassified.
    """

    fraction: float = 0.0
    start: float = 0.4375
    readmit: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise not_allowed("forgetting.fraction", self.fraction, "a number in [0, 1)")
        if not 0 <= self.start <= 1:
            raise not_allowed("forgetting.start", self.start, "a number in [0, 1]")

    @property
    def active(self) -> bool:
        """Whether any example is ever left out."""
        return self.fraction > 0


@dataclass
class ForgettingState:
    """One byte an example: the top bit is "right when last seen", the rest counts forgetting.

    Parameters
    ----------
    codes : uint8 array
        Shape ``(examples,)``; all zero at the start.
    """

    codes: Bytes

    @classmethod
    def fresh(cls, num_examples: int) -> "ForgettingState":
        """Return the state before any example was seen."""
        return cls(np.zeros(num_examples, dtype=np.uint8))

    @property
    def removed(self) -> npt.NDArray[np.bool_]:
        """Which examples are left out."""
        flags: npt.NDArray[np.bool_] = np.equal(self.codes & _COUNT, _REMOVED)
        return flags

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Forgetting events of each example; left-out ones count 0."""
        return np.where(self.removed, 0, self.codes & _COUNT).astype(np.int64)

    @property
    def learned(self) -> npt.NDArray[np.bool_]:
        """Which examples were ever classified rightly."""
        return np.not_equal(self.codes, 0)

    def observe(self, examples: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_]) -> None:
        """Record one presentation of each of some examples (each at most once).

        A forgetting event is a change from right to wrong.
        """
        codes = self.codes[examples]
        count = codes & _COUNT
        forgot = ((codes & _CORRECT) != 0) & ~correct
        count = np.minimum(count + forgot, _MAX_COUNT).astype(np.uint8)
        self.codes[examples] = count | np.where(correct, _CORRECT, 0).astype(np.uint8)

    def remove(self, fraction: float) -> int:
        """Leave out the least forgotten learned examples, up to a share of all; return how many.

        Only examples that were learned can go, and of those the ones with the fewest events; ties
        go to the lower index. At least one example stays.
        """
        able = self.learned & ~self.removed
        limit = min(int(fraction * len(self.codes)), len(self.codes) - 1) - int(self.removed.sum())
        rank = np.where(able, self.counts, np.iinfo(np.int64).max)
        order = np.argsort(rank, kind="stable")
        chosen = order[: max(0, min(limit, int(able.sum())))]
        self.codes[chosen] |= _REMOVED
        return len(chosen)

    def readmit(self, examples: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_]) -> int:
        """Take left-out examples back that are now misclassified, as forgotten once."""
        wrong = examples[~correct]
        self.codes[wrong] = 1
        return len(wrong)

    def of_round(
        self, policy: ForgettingPolicy, progress: float, judge: Judge
    ) -> npt.NDArray[np.int64]:
        """Leave out or take back what is due; return the positions to train on in a round.

        Parameters
        ----------
        policy : ForgettingPolicy
            When, and how many.
        progress : float
            Of the run, in [0, 1].
        judge : callable
            Says which of some examples the model answers correctly.
        """
        if progress >= policy.start:
            if not self.removed.any():
                self.remove(policy.fraction)
            elif policy.readmit:
                left_out = np.flatnonzero(self.removed)
                self.readmit(left_out, judge(left_out))
        return self.kept()

    def kept(self) -> npt.NDArray[np.int64]:
        """Return the positions of the examples that are trained on."""
        return np.flatnonzero(~self.removed)
