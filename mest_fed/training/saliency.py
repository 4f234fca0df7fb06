"""How much the loss depends on each weight: one pass forward and back, and no step."""

from collections.abc import Callable

from torch import Tensor, nn

from mest_fed.data import Batch
from mest_fed.training.metrics import Metrics
from mest_fed.training.trainer import LocalTrainer


class SaliencyTrainer(LocalTrainer):
    """Computes gradients as training does, in micro-batches, and leaves the weights alone."""

    def _step(self, forward: Callable[[Tensor], Tensor], batch: Batch, totals: Metrics) -> None:
        if self._costs is not None:
            self.work += self._costs().of_batch(len(batch.targets), self.micro_batch)
        self.model.zero_grad()
        self._accumulate(forward, batch, totals)


def saliency(model: nn.Module, layer: str) -> Tensor:
    """Return |w dL/dw| of a layer's weights, flat; the gradients stand.

    Parameters
    ----------
    model : nn.Module
        A dense one.
    layer : str
        As :func:`mest_fed.nn.sparsify` names it: packed projections of an attention, too.
    """
    parameters = dict(model.named_parameters())
    weight = parameters.get(f"{layer}.weight")
    weight = parameters[f"{layer}_weight"] if weight is None else weight
    assert weight.grad is not None
    return (weight.detach() * weight.grad).abs_().reshape(-1)
