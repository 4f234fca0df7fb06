"""Mutation of torch's model within one client's round; when is :mod:`.round_mutation`'s to say."""

from torch import nn
from torch.optim import Optimizer

from mest_fed.nn import Mutator
from mest_fed.nn.client_optimizer import ClientOptimizer
from mest_fed.training.round_mutation import RoundMutation


class LocalMutation:
    """A round's mutation as steps that the trainer calls."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: ClientOptimizer | Optimizer,
        mutation: RoundMutation,
        steps: int,
    ) -> None:
        self.optimizer = optimizer
        self.mutation = mutation
        self.steps = steps
        self.bounds = mutation.bounds
        self.mutator = Mutator(model, mutation.method, optimizer)

    def open(self) -> None:
        """Before the first step."""
        if self.mutation.soft:
            self.mutator.grow(self.bounds, self.mutation.generator)

    def before_step(self, step: int) -> None:
        """Before a step's gradients are computed."""
        if isinstance(self.optimizer, ClientOptimizer):  # gradients stay, for the importance
            reads = self.mutation.reads_gradients_of(step, self.steps)
            self.optimizer.keep_gradients = reads
        if self.mutation.mutates_at(step, self.steps):
            self.mutator.keep_dense_gradients(True)

    def after_step(self, step: int) -> None:
        """After a step, while its gradients stand."""
        if self.mutation.mutates_at(step, self.steps):
            self.mutator.mutate(self.bounds, self.mutation.generator)

    def close(self) -> None:
        """After the last step."""
        if self.mutation.soft:
            self.mutator.drop()
