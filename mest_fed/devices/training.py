"""What training with savings computes: some layers more than once, frozen ones less."""

from torch import nn

from mest_fed.devices.cost import Work
from mest_fed.devices.flops import training_flops
from mest_fed.memory import Savings
from mest_fed.memory.activations import batch_norm_block, batch_norm_stem, segments_of


def training_work(
    model: nn.Module, input_shape: tuple[int, int, int], savings: Savings | None = None
) -> Work:
    """Return the operations of training a model on one image.

    Counted are convolutions and linear layers. Computing normalisations again, packing what is kept
    and small micro-batches cost time as well, and no operations that are counted.

    Parameters
    ----------
    model, input_shape
        As for :func:`forward_flops`.
    savings : Savings, optional
        What is computed again, and what is frozen; nothing by default.
    """
    savings = savings or Savings()
    frozen = {m for s in segments_of(model)[: savings.frozen] for m in s.modules()}
    return training_flops(
        model, input_shape, forwards=_forward_passes(model, savings), frozen=frozen
    )


def _forward_passes(model: nn.Module, savings: Savings) -> dict[nn.Module, int]:
    """Count how often each layer of a recomputed segment goes forward."""
    passes: dict[nn.Module, int] = {}
    if savings.recompute != "segments":
        return passes
    for segment in segments_of(model)[savings.frozen :]:
        passes |= dict.fromkeys(segment.modules(), 2)
        by_hand: dict[str, int] = {}
        if batch_norm_block.handles(segment):
            by_hand = batch_norm_block.FORWARDS
        elif batch_norm_stem.handles(segment):
            by_hand = batch_norm_stem.FORWARDS
        children = dict(segment.module.named_modules())
        passes |= {children[name]: times for name, times in by_hand.items() if name in children}
    return passes
