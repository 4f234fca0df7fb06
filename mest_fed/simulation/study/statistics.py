"""Means and spreads over seeds, and paired differences with their confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

#: Share of intervals that hold the true difference, if runs are drawn anew each time.
CONFIDENCE = 0.95
_STEPS = 200


@dataclass(frozen=True)
class Spread:
    """The mean of some numbers, and their sample standard deviation.

    Parameters
    ----------
    count : int
        How many there are.
    mean : float
        Theirs.
    deviation : float or None
        With one less than their number in the denominator; None of one number.
    """

    count: int
    mean: float
    deviation: float | None

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread | None":
        """Return that of some numbers; None if there are none."""
        count = len(numbers)
        if not count:
            return None
        mean = math.fsum(numbers) / count
        if count == 1:
            return cls(1, mean, None)
        if min(numbers) == max(numbers):  # of which the mean differs in its last bit
            return cls(count, numbers[0], 0.0)
        squares = math.fsum((each - mean) ** 2 for each in numbers)
        return cls(count, mean, math.sqrt(squares / (count - 1)))


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with the interval of a paired t-test.

    Parameters
    ----------
    count : int
        Pairs.
    mean : float
        Of the differences.
    half : float or None
        Half the width of the interval around it; None of one pair, of which nothing can be said.
    """

    count: int
    mean: float
    half: float | None

    @classmethod
    def of(cls, numbers: Sequence[float], confidence: float = CONFIDENCE) -> "Difference | None":
        """Return that of some differences, one a pair; None if there are none."""
        spread = Spread.of(numbers)
        if spread is None:
            return None
        if spread.deviation is None:
            return cls(1, spread.mean, None)
        quantile = t_quantile((1 + confidence) / 2, spread.count - 1)
        half = quantile * spread.deviation / math.sqrt(spread.count)
        return cls(spread.count, spread.mean, half)

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the interval excludes 0; None where nothing can be said."""
        return None if self.half is None else abs(self.mean) > self.half

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its ends."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)


def t_share(t: float, freedom: int) -> float:
    """Return the probability that Student's t lies within -t and t.

    Exact for whole degrees of freedom (Abramowitz & Stegun, 26.7.3 and 26.7.4).

    Parameters
    ----------
    t : float
        At least 0.
    freedom : int
        Degrees of freedom, at least 1.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))


@lru_cache(maxsize=256)
def t_quantile(probability: float, freedom: int) -> float:
    """Return the value that Student's t is below with a probability of more than a half."""
    if not (0.5 < probability < 1 and freedom >= 1):
        raise ValueError(f"{probability} of {freedom} degrees of freedom has no positive quantile")
    share, low, high = 2 * probability - 1, 0.0, 1.0
    while t_share(high, freedom) < share:
        high *= 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if t_share(middle, freedom) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2
