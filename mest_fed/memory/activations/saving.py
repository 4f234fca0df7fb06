"""The one door to all that saves activation memory: ``with saving(model, savings) as forward``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.errors import not_allowed
from mest_fed.memory.activations import batch_norm_block, batch_norm_stem
from mest_fed.memory.activations.formats import FORMATS, Packed, packable
from mest_fed.memory.activations.hooks import SavedActivations
from mest_fed.memory.activations.recompute import Recomputed
from mest_fed.memory.activations.segments import Segment, segments_of
from mest_fed.memory.activations.workspace import Workspace

#: What is computed again in backward: nothing; outputs of normalisations; whole segments.
RECOMPUTE = ("none", "norms", "segments")


@dataclass(frozen=True)
class Savings:
    """What training gives up time, or exactness, for. By default nothing.

    Parameters
    ----------
    recompute : str
        One of :data:`RECOMPUTE`. Exact.
    saved : str
        Format of saved activations, one of ``FORMATS``; ``fp32`` and ``mask`` are exact.
    consume : bool
        Whether the optimizer takes gradients in during backward. Exact but for rounding.
    frozen : int
        Segments at the start of the model that do not train, and keep nothing.

    Raises
    ------
    InputError
        If a value is not allowed.
    """

    recompute: str = "none"
    saved: str = "fp32"
    consume: bool = False
    frozen: int = 0

    def __post_init__(self) -> None:
        if self.recompute not in RECOMPUTE:
            raise not_allowed("recompute", self.recompute, RECOMPUTE)
        if self.saved not in FORMATS:
            raise not_allowed("saved", self.saved, FORMATS)
        if self.frozen < 0:
            raise not_allowed("frozen", self.frozen, "a whole number from 0")


@contextmanager
def saving(model: nn.Module, savings: Savings) -> Iterator[Callable[[Tensor], Tensor]]:
    """Train a model with savings: within, call what this yields in place of the model.

    Parameters
    ----------
    model : nn.Module
        Any module; it is left as it was. Recomputation and freezing act on its segments, see
        :mod:`mest_fed.memory.activations.segments`.
    savings : Savings
        ``consume`` is the optimizer's to do.

    Raises
    ------
    InputError
        If more segments shall be frozen than the model has before its last.
    """
    segments, work = segments_of(model), Workspace()
    if savings.frozen and savings.frozen >= len(segments):
        allowed = f"a whole number from 0 to {max(0, len(segments) - 1)}"
        raise not_allowed("frozen", savings.frozen, f"{allowed} (the model's segments but one)")
    replaced = {
        segment: _frozen(segment)
        if number < savings.frozen
        else _recomputed(segment, FORMATS[savings.saved], work)
        for number, segment in enumerate(segments)
        if number < savings.frozen or savings.recompute == "segments"
    }
    still = [p for s in segments[: savings.frozen] for p in s.parameters() if p.requires_grad]
    for parameter in still:
        parameter.requires_grad_(False)
    found = {segment: vars(segment.module).get(segment.method) for segment in replaced}
    for segment, function in replaced.items():
        setattr(segment.module, segment.method, function)
    try:
        yield _forward(model, savings)
    finally:
        for segment in replaced:
            delattr(segment.module, segment.method)
            if found[segment] is not None:
                setattr(segment.module, segment.method, found[segment])
        for parameter in still:
            parameter.requires_grad_(True)


def _forward(model: nn.Module, savings: Savings) -> Callable[[Tensor], Tensor]:
    if savings.saved == "fp32" and savings.recompute == "none":
        return model

    def forward(images: Tensor) -> Tensor:
        own = [*model.parameters(), *model.buffers()]
        renormalise = savings.recompute != "none"
        with SavedActivations(FORMATS[savings.saved], own, renormalise=renormalise):
            logits: Tensor = model(images)
        return logits

    return forward


def _frozen(segment: Segment) -> Callable[[Tensor], Tensor]:
    function = segment.function

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            return function(x)

    return forward


def _recomputed(
    segment: Segment, pack: Callable[[Tensor], Packed], work: Workspace
) -> Callable[[Tensor], Tensor]:
    """Return a segment's function that keeps its packed input alone."""
    by_hand: Any = None
    if batch_norm_block.handles(segment.module):
        by_hand = batch_norm_block.RecomputedBlock
    elif batch_norm_stem.handles(segment):
        by_hand = batch_norm_stem.RecomputedStem
    parameters = tuple(segment.parameters())

    def goes_by_hand(x: Tensor) -> bool:
        if by_hand is batch_norm_stem.RecomputedStem and x.requires_grad:
            return False
        # A norm that its owner put into evaluation keeps to its running statistics.
        return by_hand is not None and all(module.training for module in segment.modules())

    def forward(x: Tensor) -> Tensor:
        y: Tensor
        if not (segment.module.training and torch.is_grad_enabled()):
            return segment.function(x)
        packed = pack(x) if packable(x) else FORMATS["fp32"](x)
        if goes_by_hand(x):
            y = by_hand.apply(x, packed, segment.module, work, *parameters)
        else:
            anchor = torch.empty(0, device=x.device, requires_grad=True)
            y = Recomputed.apply(anchor, x, packed, segment)  # type: ignore[no-untyped-call]
        return y

    return forward
