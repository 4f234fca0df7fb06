"""Recomputation of any segment, whatever it computes: backward runs it again on the whole batch.

The first run builds autograd's graph as ever, but for the tensors that the graph would keep: in the
place of each stands a ticket. When backward asks for the first of them, the segment is run again,
and what this second run saves is handed out for the tickets, in the order of saving. So gradients
are autograd's own: of any input, any number of times, of gradients too. (The idea is that of
``torch.utils.checkpoint`` without reentrance, which would import torch's compiler: 66 MB.)
"""

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mest_fed.errors import MestFedError
from mest_fed.memory.activations.saved_tensors import AsIs, Packed, packable
from mest_fed.memory.activations.segments import Segment
from mest_fed.memory.activations.state import (
    Autocast,
    Kept,
    ModuleState,
    RandomState,
    again,
    copied,
)
from mest_fed.nn.norms import unwatched


def recomputed_whole(
    segment: Segment, pack: Callable[[Tensor], Packed], args: Any, kwargs: dict[str, Any]
) -> Any:
    """Run a segment so that it keeps its packed arguments, and what it computes is made again."""
    run = _Run(segment, pack, args, kwargs)
    with saved_tensors_hooks(run.save, run.restore), unwatched():
        result = segment.function(*args, **kwargs)
    run.ran()
    return result


class _Ticket:
    """Stands for a tensor that the first run saved."""

    __slots__ = ("__weakref__",)


class _Run:
    """One run of a segment, which can be repeated. It exists as long as a ticket does."""

    def __init__(
        self,
        segment: Segment,
        pack: Callable[[Tensor], Packed],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._segment = segment
        overwrites = any(getattr(module, "inplace", False) for module in segment.modules())
        self._tensors: list[_Argument] = []

        def keep(tensor: Tensor) -> _Argument:
            # What carries no gradient, such as a mask, is no activation, unless it is the input.
            activation = tensor.requires_grad or not self._tensors
            format_of = pack if activation and _worth_packing(tensor) else None
            self._tensors.append(_Argument(tensor, format_of, overwrites=overwrites))
            return self._tensors[-1]

        self._arguments = copied((args, kwargs), keep, {})
        tensors = [*segment.parameters(), *(argument.given for argument in self._tensors)]
        devices = {tensor.device for tensor in tensors}
        self._autocast, self._random = Autocast(*devices), RandomState(devices)
        modules = dict.fromkeys([segment.module, *segment.modules()])
        self._state = ModuleState(modules, segment.name)
        self._saved: list[tuple[weakref.ref[_Ticket], torch.Size, torch.dtype]] = []
        self._ended = False
        self._made: weakref.WeakKeyDictionary[_Ticket, AsIs] = weakref.WeakKeyDictionary()

    def save(self, tensor: Tensor) -> _Ticket:
        """Give out a ticket for a tensor of the first run."""
        ticket = _Ticket()
        self._saved.append((weakref.ref(ticket), tensor.shape, tensor.dtype))
        self._made[ticket] = AsIs(tensor)  # the segment itself may take gradients
        return ticket

    def ran(self) -> None:
        """Note that the first run is over."""
        self._ended = True
        self._made.clear()
        self._random.ran()
        self._state.ran()
        for argument in self._tensors:
            argument.ran(self._segment.name)

    def restore(self, ticket: _Ticket) -> Tensor:
        """Return the tensor that a ticket stands for; backward keeps it no longer."""
        if ticket not in self._made:
            self._run_again()
        kept = self._made.pop(ticket) if self._ended else self._made[ticket]
        return kept.whole()

    def _run_again(self) -> None:
        count = 0

        def save(tensor: Tensor) -> AsIs:
            nonlocal count
            if count == len(self._saved):
                raise self._differs()
            reference, shape, dtype = self._saved[count]
            count += 1
            if (tensor.shape, tensor.dtype) != (shape, dtype):
                raise self._differs()
            ticket, kept = reference(), AsIs(tensor)
            if ticket is not None:
                self._made[ticket] = kept
            return kept

        with ExitStack() as stack:
            for context in (self._state.again(), self._random.again(), self._autocast.again()):
                stack.enter_context(context)
            stack.enter_context(torch.enable_grad())
            stack.enter_context(saved_tensors_hooks(save, AsIs.whole))
            stack.enter_context(unwatched())
            args, kwargs = copied(self._arguments, again, {})
            self._segment.function(*args, **kwargs)
        if count != len(self._saved):
            raise self._differs()

    def _differs(self) -> MestFedError:
        return MestFedError(
            f"segment {self._segment.name} computes something else when it is run again; it cannot "
            "be recomputed"
        )


class _Argument(Kept):
    """A tensor that a segment was given, as its second run will get it."""

    def __init__(
        self, given: Tensor, pack: Callable[[Tensor], Packed] | None, *, overwrites: bool
    ) -> None:
        self.given = given.detach()
        self._requires_grad, self._version = given.requires_grad, given._version
        self._packed = AsIs(given) if pack is None else pack(given)
        self._overwritten = overwrites and isinstance(self._packed, AsIs)
        if self._overwritten:
            self._packed = AsIs(self.given.clone())

    def ran(self, name: str) -> None:
        """Note that the first run is over, and whether it has overwritten the tensor."""
        changed = self.given._version != self._version
        if not changed and self._overwritten:
            self._overwritten, self._packed = False, AsIs(self.given)
        elif changed and not self._overwritten and isinstance(self._packed, AsIs):
            raise MestFedError(f"{name} changes its input in place; it cannot be recomputed")
        self._overwritten = changed
        del self.given

    def again(self) -> Tensor:
        """Return it for another run."""
        tensor = self._packed.whole().detach().requires_grad_(self._requires_grad)
        return tensor.clone() if self._overwritten else tensor  # autograd guards leaves


def _worth_packing(tensor: Tensor) -> bool:
    return packable(tensor) and tensor.dim() >= 2 and tensor.layout == torch.strided
