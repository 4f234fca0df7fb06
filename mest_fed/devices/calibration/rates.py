"""A device's rates, read off timed steps: those that explain all of them best."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from mest_fed.devices.calibration.steps import Sample
from mest_fed.devices.cost import REFERENCE, MachineRates, rate_of, train_seconds

#: Schemes that are timed.
SCHEMES = ("block", "unstructured")
#: How much a rate is held to what the others say of it, as against the samples, and the least that
#: it may cost of that: noise shall not make a rate infinite.
_HELD, _LEAST, _SWEEPS = 1e-3, 0.05, 500


@dataclass(frozen=True)
class Measured:
    """Rates of a device with some threads, and how well they explain what was timed.

    Parameters
    ----------
    threads : int
        That computed.
    rates : MachineRates
        Measured.
    samples : tuple of Sample
        The timed steps.
    """

    threads: int
    rates: MachineRates
    samples: tuple[Sample, ...]

    @property
    def ratios(self) -> list[float]:
        """Modelled seconds over measured ones, of each step."""
        return [_modelled(self.rates, each) / each.seconds for each in self.samples]

    @property
    def worst(self) -> float:
        """The largest factor between modelled and measured seconds, of steps that were fitted."""
        return _worst(self._ratios(fitted=True))

    @property
    def worst_beside(self) -> float | None:
        """The same of the steps that were not; None if all were."""
        beside = self._ratios(fitted=False)
        return _worst(beside) if beside else None

    def fitted(self, sample: Sample) -> bool:
        """Say whether the rates were to explain a step: a batch of one group has one thread."""
        return sample.case.spreads or self.threads == 1

    def slowness(self, one: "Measured") -> float:
        """Return how many times as long as with one thread an example takes: the median of steps.

        Parameters
        ----------
        one : Measured
            The same steps by one thread.
        """
        pairs = zip(self.samples, one.samples, strict=True)
        return median(
            ours.seconds / ours.examples / (theirs.seconds / theirs.examples)
            for ours, theirs in pairs
            if self.fitted(ours)
        )

    def _ratios(self, *, fitted: bool) -> list[float]:
        pairs = zip(self.ratios, self.samples, strict=True)
        return [ratio for ratio, sample in pairs if self.fitted(sample) is fitted]


def _worst(ratios: Sequence[float]) -> float:
    return max(max(ratio, 1 / ratio) for ratio in ratios)


def fit_rates(samples: Sequence[Sample], threads: int = 1) -> MachineRates:
    """Return the rates that explain timed steps best, by the squares of their relative errors.

    Six numbers of seconds a unit of work, none of them below zero: of dense, block and unstructured
    operations, of bytes, and of seconds of the reference machine's core, in calls and for weights
    of sparse linear layers. Each is held a little to the reference machine's, as fast as the device
    is in the middle.
    """
    # A batch of one group gains nothing from threads, and pays for them.
    samples = [it for it in samples if it.case.spreads or threads == 1]
    seconds = np.array([sample.seconds for sample in samples])
    work = np.array([_by_kind(sample) for sample in samples])
    kinds = ("dense", *SCHEMES)
    known = 1 / np.array([*(REFERENCE.flops[it] for it in kinds), REFERENCE.memory_rate, 1.0, 1.0])
    start = known * np.median(seconds / (work @ known))
    shares = work * start / seconds[:, None]
    found = _least_squares(shares) * start
    flops = {kind: float(1 / each) for kind, each in zip(kinds, found, strict=False)}
    memory, core, gather = (float(1 / each) for each in found[3:])
    return MachineRates(flops, memory, core, gather_speed=gather)


def _least_squares(shares: np.ndarray) -> np.ndarray:
    """Return the factors by which the shares of each row add up to one, nearly."""
    factors = np.ones(shares.shape[1])
    rest = 1 - shares @ factors
    for _ in range(_SWEEPS):
        for number, column in enumerate(shares.T):
            pull = column @ rest + _HELD * (1 - factors[number])
            new = max(_LEAST, factors[number] + pull / (column @ column + _HELD))
            rest -= (new - factors[number]) * column
            factors[number] = new
    return factors


def _by_kind(sample: Sample) -> list[float]:
    work = sample.work
    sparse = [work.sparse_flops if sample.case.scheme == it else 0.0 for it in SCHEMES]
    return [work.dense_flops, *sparse, work.moved_bytes, work.core_seconds, work.gather_seconds]


def _modelled(rates: MachineRates, sample: Sample) -> float:
    return train_seconds(rates, sample.work, scheme_of(sample))


def scheme_of(sample: Sample) -> str:
    """Return a scheme that rates know: a dense step has no sparse work."""
    return SCHEMES[0] if sample.case.scheme == "dense" else sample.case.scheme


def products_rate(rates: MachineRates, sample: Sample) -> float:
    """Return the operations a second that a step's own products reached.

    What its bytes, its calls and its dense layers take at the device's rates is not counted, but
    for a dense step.
    """
    work = sample.work
    dense = sample.case.scheme == "dense"
    own = work.dense_flops if dense else work.sparse_flops
    beside = replace(work, dense_flops=0.0 if dense else work.dense_flops, sparse_flops=0.0)
    left = sample.seconds - train_seconds(rates, beside, scheme_of(sample))
    fastest = rates.flops["dense"] if dense else rate_of(rates, scheme_of(sample))
    return own / left if left > 0.1 * sample.seconds else fastest
