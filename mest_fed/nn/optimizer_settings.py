"""What a run says of its clients' optimizer, and the optimizer built from it."""

from dataclasses import dataclass

import torch
from torch import nn

from mest_fed.catalogue import OPTIMIZERS
from mest_fed.described import kind_of
from mest_fed.errors import InputError, not_allowed
from mest_fed.nn.client_optimizer import ClientOptimizer
from mest_fed.nn.optimizers import SGD, WHERE_RELEASED


@dataclass(frozen=True)
class OptimizerSettings:
    """A client's optimizer: its name, and what the configuration says of it.

    Parameters
    ----------
    learning_rate : float
        Step size.
    momentum : float
        Of SGD; 0 keeps no momentum, and no memory for it.
    weight_decay : float
        L2 penalty on all parameters; AdamW shrinks the weights by it instead.
    name : str
        A name of ``OPTIMIZERS``.
    beta1, beta2 : float
        Decay of Adam's moments. With ``beta1 = 0`` there is no first moment.
    eps : float
        Adam's term in the denominator.
    clip_norm : float
        Largest norm of the gradient of all parameters together; 0 does not clip.
    proximal : float
        mu of FedProx (Li et al. 2020): mu (w - w0) is added to the gradient; 0 adds nothing.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    name: str = "sgd"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0
    proximal: float = 0.0

    @property
    def kind(self) -> type[ClientOptimizer]:
        """The class of the optimizer; the base class where that is known only once it is made.

        Raises
        ------
        InputError
            If the name is unknown.
        """
        maker = OPTIMIZERS.find(self.name)
        if isinstance(maker, type) and issubclass(maker, ClientOptimizer):
            return maker
        return ClientOptimizer

    def build(self, model: nn.Module, *, release_gradients: bool = False) -> ClientOptimizer:
        """Return a fresh optimizer for a model's parameters.

        Raises
        ------
        InputError
            If gradients shall be released, and :attr:`can_release` is false.
        """
        if release_gradients and not self.can_release:
            raise not_allowed("release_gradients", True, WHERE_RELEASED)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        options = {
            "momentum": self.momentum,
            "betas": (self.beta1, self.beta2),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "release_gradients": release_gradients,
        }
        made = OPTIMIZERS.build(self.name, trained, self.learning_rate, **options)
        if isinstance(made, torch.optim.Optimizer):
            from mest_fed.nn.torch_optimizer import TorchOptimizer

            try:
                made = TorchOptimizer(made)
            except InputError as error:
                raise InputError(f"{OPTIMIZERS.key} = {self.name!r}: {error}") from None
        if not isinstance(made, ClientOptimizer):
            raise InputError(
                f"{OPTIMIZERS.key} = {self.name!r} gives {kind_of(made)}; allowed: what "
                "gives a mest_fed ClientOptimizer or a torch.optim.Optimizer"
            )
        made.clip_norm, made.proximal = self.clip_norm, self.proximal
        return made

    @property
    def can_release(self) -> bool:
        """Whether gradients can be released during backward."""
        return self.kind.sums_gradients and not self.clip_norm

    @property
    def has_momentum(self) -> bool:
        """Whether a first moment is kept."""
        return bool(self.kind.momentum_key and getattr(self, self.kind.momentum_key))

    @property
    def extra_flops(self) -> int:
        """Operations for each weight and step beyond those of SGD.

        The rates of devices are those of training with SGD, whose own operations they include.
        """
        term = 3 * (self.proximal > 0) + 3 * (self.clip_norm > 0)
        return self.kind.flops - SGD.flops + term

    def without_momentum(self) -> "OptimizerSettings":
        """Return settings of the same step length in the long run, that keep no first moment."""
        return self.kind.without_momentum(self)
