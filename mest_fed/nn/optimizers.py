"""The client's optimizers, with as little memory as they can do with: SGD, Adam and AdamW.

They compute what torch's optimizers of the same names do, through the same fused operators, and
keep their state under the same names. ``client_optimizer.py`` has what all of them share.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mest_fed.errors import not_allowed
from mest_fed.nn.client_optimizer import (
    FIRST,
    GRADIENT_SUM,
    MOMENTUM,
    REFERENCE,
    SECOND,
    STEP,
    ClientOptimizer,
)
from mest_fed.nn.identity import plain_tensors

if TYPE_CHECKING:
    from mest_fed.nn.optimizer_settings import OptimizerSettings

#: What ``release_gradients`` may be; part of an error's text.
WHERE_RELEASED = (
    "False, or True with training.optimizer = 'sgd' and training.clip_norm = 0 (other optimizers, "
    "and clipping, need the gradient of a whole batch at once)"
)


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
