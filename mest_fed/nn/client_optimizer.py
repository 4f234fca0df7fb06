"""What every optimizer of a client has: parameters, their state, FedProx's term and clipping.

They are no subclasses of ``torch.optim.Optimizer``: making one of those imports torch's compiler
and sympy, 66 MB (measured, torch 2.13) that a small device would carry for nothing.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mest_fed.nn.identity import plain_tensors

if TYPE_CHECKING:
    from mest_fed.nn.optimizer_settings import OptimizerSettings

# Names under which a parameter's state holds tensors. Those of torch's optimizers:
MOMENTUM = "momentum_buffer"
STEP = "step"
FIRST = "exp_avg"
SECOND = "exp_avg_sq"
# Ours:
#: The sum of a step's released gradients, where there is no momentum.
GRADIENT_SUM = "gradient_sum"
#: The parameter before its first step, from which FedProx's term measures.
REFERENCE = "proximal_reference"


class ClientOptimizer(ABC):
    """An optimizer over the parameters that are trained.

    A subclass says what it keeps (:attr:`keys`) and how it moves parameters (:meth:`update`). Its
    constructor gets the settings that it names, of ``momentum``, ``betas``, ``eps`` and
    ``weight_decay``.
    FedProx's term and clipping are done here, in this order, before the update.

    Parameters
    ----------
    parameters : iterable of Parameter
        Those that need no gradient are left out.
    learning_rate : float
        Step size.
    weight_decay, clip_norm, proximal : float
        As in :class:`OptimizerSettings`.

    Attributes
    ----------
    state : dict
        Parameter -> tensors by name, which mutation edits in place: those of a value's shape become
        zero where a value is grown, the count of steps goes on.
    keep_gradients : bool
        While true, gradients stay in ``.grad`` until after the step although they are to be
        released, for a mutation that ranks by them.
    """

    #: Whether a step needs no more of the gradients than their sum. The constructor then takes
    #: ``release_gradients``.
    sums_gradients: ClassVar[bool] = False
    #: The field of :class:`OptimizerSettings` that decays the first moment; empty without one.
    momentum_key: ClassVar[str] = ""
    #: Floating-point operations of an update for each weight, weight decay included.
    flops: ClassVar[int] = 6

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        weight_decay: float = 0.0,
        clip_norm: float = 0.0,
        proximal: float = 0.0,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.proximal = proximal
        self.keep_gradients = False
        self.state: dict[nn.Parameter, dict[str, Any]] = defaultdict(dict)

    @classmethod
    def without_momentum(cls, settings: "OptimizerSettings") -> "OptimizerSettings":
        """Return settings that keep no first moment; its mean of gradients has their length."""
        changes: dict[str, Any] = {cls.momentum_key: 0.0} if cls.momentum_key else {}
        return replace(settings, **changes)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the tensors that are kept for each parameter from step to step."""
        return ()

    @abstractmethod
    def update(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Move parameters along their gradients, in place; their state is in :attr:`state`."""

    def zero_grad(self) -> None:
        """Forget all gradients; call it before each step's first backward pass."""
        with plain_tensors():
            for parameter in self.parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; parameters without a gradient stay, and so does their state."""
        with plain_tensors():
            moving = [p for p in self.parameters if p.grad is not None]
            if not moving:
                return
            for parameter in moving:
                self.prepare(parameter)
            gradients = [p.grad for p in moving if p.grad is not None]
            if self.proximal:
                for parameter, gradient in zip(moving, gradients, strict=True):
                    self._add_proximal(gradient, parameter)
            if self.clip_norm:
                nn.utils.clip_grad_norm_(moving, self.clip_norm)
            self.update(list(moving), gradients)

    def close(self) -> None:  # noqa: B027 - most leave nothing
        """Take off the parameters what the optimizer put on them."""

    @torch.no_grad()
    def prepare(self, parameter: nn.Parameter) -> None:
        """Make what a parameter's state lacks."""
        state = self.state[parameter]
        for key in (*self.keys, *((REFERENCE,) if self.proximal else ())):
            if key not in state:
                state[key] = _initial(key, parameter)

    def make_state(self) -> list[Tensor]:
        """Make all state, as training does in its first step, and return it: for a memory plan."""
        for parameter in self.parameters:
            self.prepare(parameter)
        return [tensor for state in self.state.values() for tensor in state.values()]

    def _gathered(self, key: str, parameters: list[Tensor]) -> list[Tensor]:
        """Return the parameters' tensors of one name."""
        return [self.state[parameter][key] for parameter in parameters]  # type: ignore[index]

    def _add_proximal(self, gradient: Tensor, parameter: nn.Parameter) -> None:
        gradient.add_(parameter - self._reference(parameter), alpha=self.proximal)

    def _reference(self, parameter: nn.Parameter) -> Tensor:
        reference: Tensor = self.state[parameter][REFERENCE]
        return reference


def _initial(key: str, parameter: nn.Parameter) -> Tensor:
    if key == STEP:
        return torch.zeros((), device=parameter.device)
    return parameter.detach().clone() if key == REFERENCE else torch.zeros_like(parameter)
