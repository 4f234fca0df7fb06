"""The server's optimizer: what the pseudo-gradient does to the global weights.

Reddi et al., "Adaptive Federated Optimization" (2021), algorithm 2. The pseudo-gradient is the old
weight minus the clients' average, so plain averaging is a step of 1 along it.
"""

from dataclasses import dataclass

import numpy as np

from mest_fed.catalogue import SERVER_OPTIMIZERS
from mest_fed.nn.state import Floats

Moments = dict[str, Floats]


@dataclass
class ServerOptimizer:
    """Averaging: steps ``learning_rate`` along the pseudo-gradient.

    Parameters
    ----------
    learning_rate : float
        1 replaces the weights by the clients' average.
    momentum : float
        Used by the subclasses.
    """

    learning_rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        self.moments: dict[str, Moments] = {}

    def step(self, name: str, weights: Floats, gradient: Floats) -> Floats:
        """Return the new weights of one tensor; where the gradient is zero nothing was held."""
        return weights - np.float32(self.learning_rate) * gradient

    def forget(self, name: str, inactive: np.ndarray) -> None:
        """Zero the moments of inactive weights (a bool mask over the tensor)."""
        for moments in self.moments.values():
            if name in moments:
                moments[name] = np.where(inactive, np.float32(0), moments[name])

    def _moment(self, kind: str, name: str, like: Floats) -> Floats:
        return self.moments.setdefault(kind, {}).setdefault(name, np.zeros_like(like))


@dataclass
class FedAvgM(ServerOptimizer):
    """Averaging with momentum (Hsu et al. 2019)."""

    def step(self, name: str, weights: Floats, gradient: Floats) -> Floats:
        """Step along the decayed sum of pseudo-gradients."""
        first = np.float32(self.momentum) * self._moment("first", name, weights) + gradient
        self.moments["first"][name] = first
        return weights - np.float32(self.learning_rate) * first


@dataclass
class FedAdam(ServerOptimizer):
    """Adam on the pseudo-gradient; beta2 = 0.99 and tau = 1e-3 as in the paper."""

    beta2: float = 0.99
    tau: float = 1e-3

    def step(self, name: str, weights: Floats, gradient: Floats) -> Floats:
        """Step along first / (sqrt(second) + tau)."""
        decay, beta2 = np.float32(self.momentum), np.float32(self.beta2)
        first = decay * self._moment("first", name, weights) + (1 - decay) * gradient
        second = beta2 * self._moment("second", name, weights) + (1 - beta2) * gradient**2
        self.moments["first"][name], self.moments["second"][name] = first, second
        change = (first / (np.sqrt(second) + np.float32(self.tau))).astype(np.float32, copy=False)
        return weights - np.float32(self.learning_rate) * change


def build_optimizer(name: str, learning_rate: float, momentum: float) -> ServerOptimizer:
    """Build a server optimizer by name.

    Raises
    ------
    InputError
        If the name is unknown.
    """
    optimizer: ServerOptimizer = SERVER_OPTIMIZERS.build(
        name, learning_rate=learning_rate, momentum=momentum
    )
    return optimizer
