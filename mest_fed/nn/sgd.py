"""SGD as MEST uses it, with as little memory as it can do with.

It computes what ``torch.optim.SGD(fused=True)`` does, through the same fused operator. It is no
subclass of ``torch.optim.Optimizer``: making one of those imports torch's compiler and sympy,
66 MB (measured, torch 2.13) that a small device would carry for nothing.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.nn.identity import plain_tensors

#: Under this name a parameter's state holds its momentum, as in torch.
MOMENTUM = "momentum_buffer"
#: Under this one it holds the sum of a step's gradients, where there is no momentum.
GRADIENT_SUM = "gradient_sum"


class SGD:
    """Momentum SGD over the parameters that are trained.

    With ``release_gradients`` each gradient is added to its parameter's momentum as soon as
    backward has made it, and is freed: gradients never stand beside each other. What several
    micro-batches, or several pieces of a recomputed layer, contribute gathers there too: v = m v +
    g_1 + g_2 + ..., then w -= lr v, as ever. Only the order of the additions differs. Without
    momentum the sum of the gradients stands in its place until the step.

    Parameters
    ----------
    parameters : iterable of Parameter
        Those that need no gradient are left out.
    learning_rate : float
        Step size.
    momentum : float
        0 keeps none.
    weight_decay : float
        L2 penalty.
    release_gradients : bool
        Whether gradients go into the momentum during backward; :meth:`close` ends it.

    Attributes
    ----------
    state : dict
        Parameter -> ``{"momentum_buffer": Tensor}``, which mutation edits in place; without
        momentum, the sum of consumed gradients until the step.
    keep_gradients : bool
        While true, gradients stay in ``.grad`` until after the step although ``release_gradients``
        was asked for, for a mutation that ranks by them.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        release_gradients: bool = False,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.keep_gradients = False
        self.state: dict[nn.Parameter, dict[str, Any]] = defaultdict(dict)
        #: Parameters of which gradients were consumed since the last step -> where their sum is.
        self._sums: dict[nn.Parameter, str] = {}
        consumed = self.parameters if release_gradients else []
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._consume)  # type: ignore[no-untyped-call]
            for p in consumed
        ]

    def zero_grad(self) -> None:
        """Forget all gradients; call it before each step's first backward pass."""
        self._forget_sums()
        with plain_tensors():
            for parameter in self.parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step; parameters without a gradient stay, and so does their momentum."""
        with plain_tensors():
            if self._sums:
                for parameter, key in self._sums.items():
                    parameter.sub_(self.state[parameter][key], alpha=self.learning_rate)
                self._forget_sums()
            else:
                self._step_by_gradients()

    def close(self) -> None:
        """Consume no more: gradients stay where backward puts them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _forget_sums(self) -> None:
        for parameter, key in self._sums.items():
            if key == GRADIENT_SUM:
                del self.state[parameter]
        self._sums.clear()

    def _step_by_gradients(self) -> None:
        moving: list[Tensor] = [p for p in self.parameters if p.grad is not None]
        if not moving:
            return
        if self.momentum:
            for parameter in self.parameters:
                if parameter.grad is not None and MOMENTUM not in self.state[parameter]:
                    self.state[parameter][MOMENTUM] = torch.zeros_like(parameter)
        momenta: list[Tensor] = []
        if self.momentum:
            momenta = [self.state[p][MOMENTUM] for p in self.parameters if p.grad is not None]
        torch._fused_sgd_(
            moving,
            [p.grad for p in moving if p.grad is not None],
            momenta,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    @torch.no_grad()
    def _consume(self, parameter: Tensor) -> None:
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
        """Begin a step's sum: what remains of the momentum, weight decay, the first gradient."""
        total: Tensor | None = self.state[parameter].get(MOMENTUM) if self.momentum else None
        total = gradient if total is None else total.mul_(self.momentum).add_(gradient)
        return total.add_(parameter, alpha=self.weight_decay) if self.weight_decay else total
