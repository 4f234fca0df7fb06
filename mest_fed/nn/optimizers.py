"""The client's optimizers, with as little memory as they can do with: SGD, Adam and AdamW.

They compute what torch's optimizers of the same names do, through the same fused operators, and
keep their state under the same names. They are no subclasses of ``torch.optim.Optimizer``: making
one of those imports torch's compiler and sympy, 66 MB (measured, torch 2.13) that a small device
would carry for nothing.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mest_fed.errors import not_allowed
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


#: What ``release_gradients`` may be; part of an error's text.
WHERE_RELEASED = (
    "False, or True with training.optimizer = 'sgd' and training.clip_norm = 0 (other optimizers, "
    "and clipping, need the gradient of a whole batch at once)"
)


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


class SGD(ClientOptimizer):
    """Momentum SGD: v = m v + g + decay w, then w -= lr v.

    With ``release_gradients`` each gradient is added to its parameter's momentum as soon as
    backward has made it, and is freed: gradients never stand beside each other. What several
    micro-batches, or several chunks of a recomputed layer, contribute gathers there too: v = m v +
    g_1 + g_2 + ..., then w -= lr v, as ever. Only the order of the additions differs. Without
    momentum the sum of the gradients stands in its place until the step.

    Parameters
    ----------
    parameters, learning_rate, weight_decay, clip_norm, proximal
        As for :class:`ClientOptimizer`.
    momentum : float
        0 keeps none.
    release_gradients : bool
        Whether gradients go into the momentum during backward; :meth:`close` ends it.

    Raises
    ------
    InputError
        If gradients shall be both released and clipped.
    """

    sums_gradients = True
    momentum_key = "momentum"

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float = 0.0,
        proximal: float = 0.0,
        release_gradients: bool = False,
    ) -> None:
        super().__init__(
            parameters,
            learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            proximal=proximal,
        )
        if release_gradients and clip_norm:
            raise not_allowed("release_gradients", True, WHERE_RELEASED)
        self.momentum = momentum
        #: Parameters of which gradients were released since the last step -> where their sum is.
        self._sums: dict[nn.Parameter, str] = {}
        released = self.parameters if release_gradients else []
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._release)  # type: ignore[no-untyped-call]
            for p in released
        ]

    @classmethod
    def without_momentum(cls, settings: "OptimizerSettings") -> "OptimizerSettings":
        """Raise the rate: under momentum m a constant gradient moves weights 1 / (1 - m) as far."""
        rate = settings.learning_rate / (1 - settings.momentum)
        return replace(settings, learning_rate=rate, momentum=0.0)

    @property
    def keys(self) -> tuple[str, ...]:
        """The momentum, if there is one."""
        return (MOMENTUM,) if self.momentum else ()

    def zero_grad(self) -> None:
        """Forget all gradients, those that were released too."""
        self._forget_sums()
        super().zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; parameters without a gradient stay, and so does their momentum."""
        if not self._sums:
            super().step()
            return
        with plain_tensors():
            for parameter, key in self._sums.items():
                parameter.sub_(self.state[parameter][key], alpha=self.learning_rate)
            self._forget_sums()

    def close(self) -> None:
        """Release no more: gradients stay where backward puts them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def update(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Move parameters along their momenta."""
        torch._fused_sgd_(
            parameters,
            gradients,
            self._gathered(MOMENTUM, parameters) if self.momentum else [],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    def _forget_sums(self) -> None:
        for parameter, key in self._sums.items():
            if key == GRADIENT_SUM:
                del self.state[parameter][key]
        self._sums.clear()

    @torch.no_grad()
    def _release(self, parameter: Tensor) -> None:
        """Add a gradient that backward has just made to the parameter's sum, and free it."""
        with plain_tensors():
            gradient = parameter.grad
            if self.keep_gradients or gradient is None:
                return
            assert isinstance(parameter, nn.Parameter)
            parameter.grad = None
            if parameter in self._sums:
                self.state[parameter][self._sums[parameter]].add_(gradient)
                return
            key = MOMENTUM if self.momentum else GRADIENT_SUM
            self.state[parameter][key] = self._first_of_step(parameter, gradient)
            self._sums[parameter] = key

    def _first_of_step(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """Begin a step's sum: what remains of the momentum, the penalties, the first gradient."""
        state = self.state[parameter]
        total: Tensor | None = state.get(MOMENTUM) if self.momentum else None
        total = gradient if total is None else total.mul_(self.momentum).add_(gradient)
        if self.proximal:
            state.setdefault(REFERENCE, parameter.detach().clone())
            self._add_proximal(total, parameter)
        return total.add_(parameter, alpha=self.weight_decay) if self.weight_decay else total


class Adam(ClientOptimizer):
    """Adam (Kingma & Ba 2015): moments of the gradient, its decayed mean and mean square.

    With m and v at zero before the first step, in step t: m = b1 m + (1 - b1) g,
    v = b2 v + (1 - b2) g^2, w -= lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps). The weight decay
    is added to the gradient as decay w. A value that a mutation grows begins with m = v = 0, and t
    goes on, for it is the parameter's: a restart would inflate the steps of all other values.

    Parameters
    ----------
    parameters, learning_rate, weight_decay, clip_norm, proximal
        As for :class:`ClientOptimizer`.
    betas : tuple of float
        b1 and b2. With b1 = 0 no first moment is kept, as it is the gradient.
    eps : float
        Added to the denominator.
    """

    momentum_key = "beta1"
    flops = 15
    _fused: ClassVar[Any] = staticmethod(torch._fused_adam_)

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float = 0.0,
        proximal: float = 0.0,
    ) -> None:
        super().__init__(
            parameters,
            learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            proximal=proximal,
        )
        self.betas = betas
        self.eps = eps

    @property
    def keys(self) -> tuple[str, ...]:
        """The count of steps, and the moments."""
        return (STEP, FIRST, SECOND) if self.betas[0] else (STEP, SECOND)

    def update(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Move parameters by their moments."""
        steps = self._gathered(STEP, parameters)
        torch._foreach_add_(steps, 1)
        self._fused(
            parameters,
            gradients,
            # With b1 = 0 the operator leaves the gradient in the first moment's place.
            self._gathered(FIRST, parameters) if self.betas[0] else gradients,
            self._gathered(SECOND, parameters),
            [],
            steps,
            amsgrad=False,
            lr=self.learning_rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )


class AdamW(Adam):
    """Adam whose weight decay is no part of the gradient (Loshchilov & Hutter 2019).

    w -= lr decay w, then Adam's step.
    """

    _fused: ClassVar[Any] = staticmethod(torch._fused_adamw_)
