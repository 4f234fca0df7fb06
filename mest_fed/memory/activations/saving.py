"""What saves activation memory, in one call: ``with memory_saving(model, options) as forward``."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.catalogue import FORMATS, Recompute
from mest_fed.errors import InputError, not_allowed
from mest_fed.memory.activations import batch_norm_block, batch_norm_stem
from mest_fed.memory.activations.micro_chunks import Workspace
from mest_fed.memory.activations.recompute import RecomputedInChunks, by_function
from mest_fed.memory.activations.rows import maps_rows
from mest_fed.memory.activations.saved_tensors import (
    AsIs,
    Packed,
    SavedActivations,
    packable,
)
from mest_fed.memory.activations.segments import Segment, segments_of
from mest_fed.memory.activations.whole import recomputed_whole
from mest_fed.nn.identity import transformed

#: What is computed again in backward, the least first.
RECOMPUTE = tuple(kind.value for kind in Recompute)


@dataclass(frozen=True)
class MemoryOptions:
    """What training gives up time, or exactness, for. By default nothing.

    Parameters
    ----------
    recompute : str
        One of :data:`RECOMPUTE`. Exact.
    saved : str
        Format of saved activations, one of ``FORMATS``; ``fp32`` and ``mask`` are exact.
    release_gradients : bool
        Whether the optimizer takes gradients in during backward. Exact but for rounding.
    frozen : int
        Segments at the start of the model that do not train, and keep nothing.
    segments : str
        Patterns of the modules that are segments, separated by commas; empty: they are found. See
        :func:`mest_fed.memory.activations.segments_of`.

    Raises
    ------
    InputError
        If a value is not allowed.
    """

    recompute: str = "none"
    saved: str = "fp32"
    release_gradients: bool = False
    frozen: int = 0
    segments: str = ""

    def __post_init__(self) -> None:
        if self.recompute not in RECOMPUTE:
            raise not_allowed("recompute", self.recompute, RECOMPUTE)
        FORMATS.check(self.saved)
        if self.frozen < 0:
            raise not_allowed("frozen", self.frozen, "a whole number from 0")


class NothingSavedWarning(UserWarning):
    """Segments shall be recomputed, and none was found, or none was called."""


def check_frozen(model: nn.Module, options: MemoryOptions, key: str = "memory.frozen") -> None:
    """Check that a model has as many segments before its last as shall be frozen.

    Raises
    ------
    InputError
        If it has not, by the name of ``key``; or segments are named that it has not.
    """
    most = max(0, len(segments_of(model, options.segments)) - 1) if options.frozen else 0
    if options.frozen > most:
        allowed = f"a whole number from 0 to {most} (the model's segments but one)"
        raise not_allowed(key, options.frozen, allowed)


@contextmanager
def memory_saving(model: nn.Module, options: MemoryOptions) -> Iterator[Callable[..., Any]]:
    """Train a model with memory options: within, call what this yields in place of the model.

    Parameters
    ----------
    model : nn.Module
        Any module; it is left as it was. Recomputation and freezing act on its segments, see
        :mod:`mest_fed.memory.activations.segments`. A copy of it that is made within is a plain
        model of its own.
    options : MemoryOptions
        ``release_gradients`` is the optimizer's to do.

    Yields
    ------
    callable
        Takes and returns what the model does.

    Raises
    ------
    InputError
        If more segments shall be frozen than the model has before its last, or segments are named
        that it has not.

    Warns
    -----
    NothingSavedWarning
        If segments shall be recomputed and the model has none, or calls none.
    """
    check_frozen(model, options)
    segments = segments_of(model, options.segments)
    recomputed: list[Recomputed] = []
    if options.recompute == Recompute.SEGMENTS:
        work = Workspace()
        recomputed = [
            Recomputed(segment, FORMATS.find(options.saved), work) for segment in segments
        ]
        if not segments:
            _warn_of_nothing_saved(model, stacklevel=4)
    frozen = [p for s in segments[: options.frozen] for p in s.parameters() if p.requires_grad]
    with ExitStack() as stack:
        for parameter in frozen:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        for function in recomputed:
            stack.enter_context(_in_place(function))
        yield _forward(model, options, recomputed)


def _warn_of_nothing_saved(model: nn.Module, stacklevel: int) -> None:
    warnings.warn(
        f"recompute = 'segments' saves nothing: {type(model).__name__} has no segments that it "
        "calls; put its blocks into an nn.Sequential or an nn.ModuleList, or name them in an "
        "attribute segments (see mest_fed.memory.activations.segments)",
        NothingSavedWarning,
        stacklevel=stacklevel,
    )


@contextmanager
def _in_place(function: "Recomputed") -> Iterator[None]:
    """Have a module call this in the place of its method."""
    module, method = function.segment.module, function.segment.method
    attributes = vars(module)
    found = {name: attributes[name] for name in (method, _STATE) if name in attributes}
    attributes[method], attributes[_STATE] = function, _StateOfCopies(module)
    function.covers = found.get(method)
    try:
        yield
    finally:
        for name in (method, _STATE):
            attributes.pop(name, None)
        attributes.update(found)


#: Where copy and pickle ask a module for its attributes.
_STATE = "__getstate__"


class _StateOfCopies:
    """Stands for a module's ``__getstate__``: copies and pickles get its own methods."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self) -> Any:
        state = type(self._module).__getstate__(self._module)  # type: ignore[no-untyped-call]
        if not isinstance(state, dict):
            return state
        for name, value in list(state.items()):
            own = value
            while isinstance(own, Recomputed):
                own = own.covers
            if isinstance(value, _StateOfCopies) or own is None:
                del state[name]
            else:
                state[name] = own
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _of_copy(MethodType(type(self._module).__getstate__, self._module), memo)


def _forward(
    model: nn.Module, options: MemoryOptions, recomputed: list["Recomputed"]
) -> Callable[..., Any]:
    if FORMATS.find(options.saved) is AsIs and options.recompute == Recompute.NONE:
        return model
    unsaid = bool(recomputed)

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal unsaid
        if transformed():
            raise InputError(
                "recomputed or packed activations are not allowed within torch.func (vmap, grad, "
                "...); allowed: recompute = none with saved = fp32"
            )
        own = [*model.parameters(), *model.buffers()]
        renormalise = options.recompute != Recompute.NONE
        with SavedActivations(FORMATS.find(options.saved), own, renormalise=renormalise):
            result = model(*args, **kwargs)
        if unsaid and model.training:
            unsaid = False
            if not any(function.called for function in recomputed):
                _warn_of_nothing_saved(model, stacklevel=3)
        return result

    return forward


class Recomputed:
    """A segment's function in training, run so that it is computed again in backward.

    It stands on the segment's module, in the place of the class's method.

    Attributes
    ----------
    called : bool
        Whether it was.
    covers : object
        What stood there before: a ``forward`` of the user's, or None.
    """

    def __init__(self, segment: Segment, pack: Callable[[Tensor], Packed], work: Workspace) -> None:
        self.segment, self.called = segment, False
        self.covers: Any = None
        self._pack, self._work = pack, work
        self._by_hand: Any = None
        if batch_norm_block.handles(segment):
            self._by_hand = batch_norm_block.RecomputedBlock
        elif batch_norm_stem.handles(segment):
            self._by_hand = batch_norm_stem.RecomputedStem

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the segment."""
        self.called = True
        segment = self.segment
        if not self._worthwhile(args, kwargs):
            return segment.function(*args, **kwargs)
        function = self._in_chunks(args) if not kwargs else None
        if function is None:
            return recomputed_whole(segment, self._pack, args, kwargs)
        x = args[0]
        packed = self._pack(x) if packable(x) else AsIs(x)
        return by_function(function, segment, x, packed, self._work)

    def _worthwhile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this is training, of a segment that is whole, with a gradient to take."""
        if not (self.segment.module.training and torch.is_grad_enabled()):
            return False
        parameters = self.segment.parameters()
        if any(nn.parameter.is_lazy(parameter) for parameter in parameters):
            return False  # they are made in this run, which so cannot be repeated
        given = (tensor for tensor in (*args, *kwargs.values()) if isinstance(tensor, Tensor))
        return any(tensor.requires_grad for tensor in (*given, *parameters))

    def _in_chunks(self, args: tuple[Any, ...]) -> Any:
        """Return the autograd function that takes a batch in micro-chunks, None where none may."""
        if len(args) != 1 or not isinstance(args[0], Tensor):
            return None
        (x,) = args
        if not x.dim() or not x.shape[0]:
            return None
        if self._by_hand is batch_norm_stem.RecomputedStem and x.requires_grad:
            return None
        if self._by_hand is not None and batch_norm_block.suits(self.segment, x):
            return self._by_hand
        return RecomputedInChunks if maps_rows(self.segment, x) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _of_copy(self.segment.function, memo)

    def __reduce__(self) -> Any:
        return _itself, (self.segment.function,)


def _of_copy(function: Any, memo: dict[int, Any]) -> Any:
    """Return a method of the copy that is being made, where a class copies its attributes itself.

    Where it does not say which object is the copy, return the function that is no method yet.
    """
    if isinstance(function, MethodType) and id(function.__self__) not in memo:
        return function.__func__
    return copy.deepcopy(function, memo)


def _itself(function: Any) -> Any:
    return function
