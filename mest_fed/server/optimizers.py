"""The server's optimizer: what the pseudo-gradient does to the global weights.

Reddi et al., "Adaptive Federated Optimization" (2021), algorithm 2. The pseudo-gradient g is the
old weight minus the clients' average, so plain averaging is a step of 1 along it. The adaptive
ones take w -= lr m / (sqrt(v) + tau), with m = beta1 m + (1 - beta1) g, and differ in v. Moments
begin at zero, as in Flower's strategies of the same names; the paper lets v begin at tau^2 or more.
Flower's FedAdam corrects the rate for that beginning, the paper's and this one do not.

Running statistics are no weights: they become the clients' average under every optimizer. A weight
that no client holds in a round has no pseudo-gradient: it stays, and so do its moments. A
weight that is dropped or grown begins with moments of zero.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from mest_fed.catalogue import SERVER_OPTIMIZERS
from mest_fed.sparsity.arrays import Floats

Moments = dict[str, Floats]


@dataclass
class ServerOptimizer:
    """Averaging: steps ``learning_rate`` along the pseudo-gradient.

    Parameters
    ----------
    learning_rate : float
        1 replaces the weights by the clients' average.
    momentum : float
        Decay of the first moment, in the subclasses that have one.
    beta2 : float
        Decay of the second moment of FedAdam and FedYogi.
    tau : float
        Added to the denominator of the adaptive ones.
    """

    learning_rate: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    #: Names of the moments that are kept for each weight.
    kinds: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self.moments: dict[str, Moments] = {}

    def step(
        self,
        name: str,
        weights: Floats,
        gradient: Floats,
        held: npt.NDArray[np.bool_] | None = None,
    ) -> Floats:
        """Return the new weights of one tensor.

        Parameters
        ----------
        name : str
            Of the tensor.
        weights, gradient : float32 array
            The old weights and the pseudo-gradient, of one shape.
        held : bool array or None
            Which weights clients held; the others and their moments stay. None if all are held.
        """
        old = {kind: self._moment(kind, name, weights) for kind in self.kinds}
        change, new = self.update(gradient, old)
        moved: Floats = weights - np.float32(self.learning_rate) * change
        if held is not None:
            moved = np.where(held, moved, weights)
            new = {kind: np.where(held, moment, old[kind]) for kind, moment in new.items()}
        for kind, moment in new.items():
            self.moments[kind][name] = moment
        return moved

    def update(self, gradient: Floats, moments: Moments) -> tuple[Floats, Moments]:
        """Return what is subtracted at a rate of 1, and the new moments by kind."""
        return gradient, {}

    def forget(self, name: str, inactive: npt.NDArray[np.bool_]) -> None:
        """Zero the moments of some weights (a bool mask over the tensor)."""
        for moments in self.moments.values():
            if name in moments:
                moments[name] = np.where(inactive, np.float32(0), moments[name])

    def _moment(self, kind: str, name: str, like: Floats) -> Floats:
        return self.moments.setdefault(kind, {}).setdefault(name, np.zeros_like(like))


@dataclass
class FedAvgM(ServerOptimizer):
    """Averaging with momentum (Hsu et al. 2019)."""

    kinds: ClassVar[tuple[str, ...]] = ("first",)

    def update(self, gradient: Floats, moments: Moments) -> tuple[Floats, Moments]:
        """Step along the decayed sum of pseudo-gradients: m = momentum m + g."""
        first = np.float32(self.momentum) * moments["first"] + gradient
        return first, {"first": first}


class _Adaptive(ServerOptimizer):
    """Steps along first / (sqrt(second) + tau)."""

    kinds: ClassVar[tuple[str, ...]] = ("first", "second")

    def update(self, gradient: Floats, moments: Moments) -> tuple[Floats, Moments]:
        """Step by both moments."""
        decay = np.float32(self.momentum)
        first = decay * moments["first"] + (1 - decay) * gradient
        second = self.second(moments["second"], gradient)
        change = (first / (np.sqrt(second) + np.float32(self.tau))).astype(np.float32, copy=False)
        return change, {"first": first, "second": second}

    def second(self, old: Floats, gradient: Floats) -> Floats:
        """Return the new second moment."""
        raise NotImplementedError


@dataclass
class FedAdam(_Adaptive):
    """v = beta2 v + (1 - beta2) g^2."""

    def second(self, old: Floats, gradient: Floats) -> Floats:
        """Return the decayed mean of squares."""
        beta2 = np.float32(self.beta2)
        mean: Floats = beta2 * old + (1 - beta2) * gradient**2
        return mean


@dataclass
class FedYogi(_Adaptive):
    """v = v - (1 - beta2) g^2 sign(v - g^2): v moves by no more than g^2 at a time."""

    def second(self, old: Floats, gradient: Floats) -> Floats:
        """Move the second moment towards the square."""
        square, beta2 = gradient**2, np.float32(self.beta2)
        moved: Floats = old - (1 - beta2) * square * np.sign(old - square)
        return moved


@dataclass
class FedAdagrad(_Adaptive):
    """v = v + g^2. There is no momentum (beta1 = 0), as in the paper's experiments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.momentum = 0.0

    def second(self, old: Floats, gradient: Floats) -> Floats:
        """Add the square."""
        total: Floats = old + gradient**2
        return total


def build_optimizer(name: str, **options: float) -> ServerOptimizer:
    """Build a server optimizer by name.

    Parameters
    ----------
    name : str
        A name of ``SERVER_OPTIMIZERS``.
    **options : float
        Fields of :class:`ServerOptimizer`.

    Raises
    ------
    InputError
        If the name is unknown.
    """
    optimizer: ServerOptimizer = SERVER_OPTIMIZERS.build(name, **options)
    return optimizer
