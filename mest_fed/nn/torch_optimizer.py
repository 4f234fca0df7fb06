"""An optimizer of torch, or derived from torch's, as a client's optimizer.

Making one imports torch's compiler, 66 MB that :mod:`mest_fed.nn.optimizers` does without.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.nn.client_optimizer import REFERENCE, ClientOptimizer
from mest_fed.nn.optimizer_state import refuse_unsuited


class TorchOptimizer(ClientOptimizer):
    """Clips, adds FedProx's term, and leaves the step to an optimizer of torch.

    Parameters
    ----------
    wrapped : torch.optim.Optimizer
        Its state and groups of parameters are this one's.

    Raises
    ------
    InputError
        If it does not suit sparse layers, such as LBFGS.
    """

    def __init__(self, wrapped: torch.optim.Optimizer) -> None:
        refuse_unsuited(wrapped)
        self.wrapped = wrapped
        groups = wrapped.param_groups
        super().__init__([each for group in groups for each in group["params"]], groups[0]["lr"])
        self.state: Any = wrapped.state
        #: References of parameters that torch's optimizer has not seen: it takes a state that holds
        #: anything for its own.
        self._references: dict[nn.Parameter, Tensor] = {}

    def prepare(self, parameter: nn.Parameter) -> None:
        """Keep FedProx's reference."""
        if self.proximal and REFERENCE not in self.state.get(parameter, {}):
            self._references[parameter] = parameter.detach().clone()

    def update(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Have torch's optimizer take its step."""
        self.wrapped.step()
        for parameter, reference in self._references.items():
            self.state[parameter][REFERENCE] = reference
        self._references.clear()

    def make_state(self) -> list[Tensor]:
        """Make all state, by a step without gradients, and return it."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.step()
        self.zero_grad()
        found = [each for state in self.state.values() for each in state.values()]
        return [each for each in found if isinstance(each, Tensor)]

    def _reference(self, parameter: nn.Parameter) -> Tensor:
        known = self._references.get(parameter)
        return super()._reference(parameter) if known is None else known
