"""What the second run of a segment must find as the first found it, and leave as the first left it.

The attributes of its modules (buffers, counters, whether they are training), random generators and
autocast. The second run gets copies of what was there before the first, so that what the first left
behind is not touched.
"""

import copy
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from mest_fed.errors import MestFedError
from mest_fed.memory.activations.rows import keeps_no_state

#: Unchanged tensors up to this size are copied all the same, so that they may change afterwards.
_SMALL_BYTES = 2**12


class Kept(ABC):
    """A tensor as it is now, for a later run."""

    @abstractmethod
    def again(self) -> Tensor:
        """Return it for another run."""


def again(kept: Kept) -> Tensor:
    """Return a tensor for another run, whatever it was."""
    return kept.again()


def copied(value: Any, of_tensor: Callable[[Any], Any], memo: dict[int, Any]) -> Any:
    """Copy plain data: containers, dataclasses, arrays and generators, and what they hold.

    Of other plain objects the attributes alone are copied, not what those hold: they may lead to
    all of a program. Anything else is taken to have no state that a forward pass changes.

    Parameters
    ----------
    value : object
        To be copied.
    of_tensor : callable
        Copies a tensor, or what stands for one (:class:`Kept`).
    memo : dict
        id -> (original, copy), so that what is one object stays one.
    """
    if id(value) not in memo:
        memo[id(value)] = value, _copied(value, of_tensor, memo)
    return memo[id(value)][1]


def _copied(value: Any, of_tensor: Callable[[Any], Any], memo: dict[int, Any]) -> Any:
    def inner(part: Any) -> Any:
        return copied(part, of_tensor, memo)

    if isinstance(value, Tensor | Kept):
        return of_tensor(value)
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, torch.Generator):
        twin = torch.Generator(value.device)
        twin.set_state(value.get_state())
        return twin
    if isinstance(value, _DEEPLY_COPIED):
        return copy.deepcopy(value)
    if isinstance(value, tuple):
        parts = [inner(part) for part in value]
        if all(a is b for a, b in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, _CONTAINERS) or (is_dataclass(value) and not isinstance(value, type)):
        return _refilled(value, inner, memo)
    return copy.copy(value) if _is_plain(value) else value


def _is_plain(value: Any) -> bool:
    """Whether an object is its attributes and nothing else, such as a meter of a user's own."""
    kind: Any = type(value)
    special = ("__copy__", "__del__", "__get__")
    return (
        hasattr(value, "__dict__")
        and kind.__module__ != "builtins"
        and not callable(value)
        and not any(hasattr(value, name) for name in special)
        and all(getattr(kind, name) is getattr(object, name) for name in _PICKLING)
    )


_PICKLING = ("__reduce__", "__reduce_ex__", "__getstate__")
_DEEPLY_COPIED = (np.ndarray, np.random.Generator, np.random.RandomState, random.Random)
_CONTAINERS = (dict, list, deque, set, SimpleNamespace)


def _refilled(value: Any, inner: Callable[[Any], Any], memo: dict[int, Any]) -> Any:
    twin = copy.copy(value)
    memo[id(value)] = value, twin  # before its parts, which may refer to it
    if isinstance(value, dict):
        for key, part in value.items():
            twin[key] = inner(part)
    elif isinstance(value, list | deque):
        for number, part in enumerate(value):
            twin[number] = inner(part)
    elif not isinstance(value, set):  # whose elements do not change
        for name, part in vars(value).items():
            object.__setattr__(twin, name, inner(part))
    return twin


class KeptTensor(Kept):
    """A tensor of a module as it is now, for a later run.

    Parameters
    ----------
    tensor : Tensor
        It is copied unless it is a parameter, which a forward pass must not change.
    name : str
        Of the segment, for an error.
    """

    def __init__(self, tensor: Tensor, name: str) -> None:
        self._is_parameter = isinstance(tensor, nn.Parameter)
        self._tensor = tensor if self._is_parameter else tensor.detach()
        self._name, self._version = name, tensor._version
        self._address = _address(tensor)
        self._requires_grad = tensor.requires_grad
        self._before = None if self._is_parameter else tensor.detach().clone()

    def ran(self) -> None:
        """Note that the first run is over: keep no copy of what is large and did not change."""
        tensor = self._tensor
        changed = tensor._version != self._version
        if self._before is None:
            if changed:
                raise MestFedError(
                    f"segment {self._name} changes a parameter of shape {tuple(tensor.shape)} in "
                    "its forward pass; it cannot be recomputed"
                )
            self._version = tensor._version
        elif not changed and tensor.numel() * tensor.element_size() > _SMALL_BYTES:
            self._before = None
        if self._before is not None:
            del self._tensor

    def again(self) -> Tensor:  # noqa: D102 - Kept says it
        if self._before is not None:
            return self._before.clone().requires_grad_(self._requires_grad)
        tensor = self._tensor
        if _address(tensor) != self._address:
            raise replaced(self._name)
        if tensor._version != self._version:
            raise MestFedError(
                f"a tensor of shape {tuple(tensor.shape)} of segment {self._name} was changed in "
                "place between its forward and its backward pass"
            )
        if tensor.requires_grad == self._requires_grad and self._is_parameter:
            return tensor
        twin = tensor.detach().requires_grad_(self._requires_grad)
        return nn.Parameter(twin, self._requires_grad) if self._is_parameter else twin


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else 0


def replaced(name: str) -> MestFedError:
    """Return the error that a segment's weights are no longer those of its forward pass."""
    return MestFedError(
        f"weights of segment {name} were replaced between its forward and its backward pass"
    )


#: Attributes that torch gives a module, hooks and the like, which a forward pass leaves alone.
_BOOKKEEPING = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers"}


class ModuleState:
    """The attributes of modules as they are now, for a later run.

    Parameters
    ----------
    modules : iterable of nn.Module
        Of a segment. Of those that keep no state only the parameters are of interest.
    name : str
        Of the segment, for an error.
    """

    def __init__(self, modules: Iterable[nn.Module], name: str) -> None:
        self._tensors: list[KeptTensor] = []
        self._attributes: list[tuple[nn.Module, dict[str, Any]]] = []
        memo: dict[int, Any] = {}
        for module in modules:
            state = vars(module).items()
            if keeps_no_state(module):
                state = {"_parameters": module._parameters}.items()
            kept = {
                key: copied(value, self._keep(name), memo)
                for key, value in state
                if key not in _BOOKKEEPING
            }
            self._attributes.append((module, kept))

    def _keep(self, name: str) -> Callable[[Tensor], KeptTensor]:
        def keep(tensor: Tensor) -> KeptTensor:
            self._tensors.append(KeptTensor(tensor, name))
            return self._tensors[-1]

        return keep

    def ran(self) -> None:
        """Note that the first run is over."""
        for tensor in self._tensors:
            tensor.ran()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Restore the recorded module state in the block; discard changes after it."""
        memo: dict[int, Any] = {}
        before = []
        for module, attributes in self._attributes:
            # Only the parameters were kept of a module without state: the rest is as it is.
            stateless = "training" not in attributes
            shared = {
                key: value
                for key, value in vars(module).items()
                if stateless or key in _BOOKKEEPING
            }
            before.append(shared | copied(attributes, again, memo))
        now = [(module, vars(module)) for module, _ in self._attributes]
        try:
            for (module, _), attributes in zip(now, before, strict=True):
                object.__setattr__(module, "__dict__", attributes)
            yield
        finally:
            for module, attributes in now:
                object.__setattr__(module, "__dict__", attributes)


class RandomState:
    """The global random generators as they are now: torch's, NumPy's and Python's.

    Parameters
    ----------
    devices : iterable of torch.device
        Whose generators matter beside the CPU's.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._generators: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
            (torch.get_rng_state, torch.set_rng_state),
            (random.getstate, random.setstate),
            (np.random.get_state, np.random.set_state),
        ]
        for device in devices:
            if device.type in ("cuda", "xpu"):
                module = torch.get_device_module(device)
                self._generators.append(
                    (
                        partial(module.get_rng_state, device),
                        partial(module.set_rng_state, device=device),
                    )
                )
        self._before = [read() for read, _ in self._generators]

    def ran(self) -> None:
        """Note that the first run is over: generators that it did not use do not matter."""
        used = [
            (generator, state)
            for generator, state in zip(self._generators, self._before, strict=True)
            if not _same(generator[0](), state)
        ]
        self._generators = [generator for generator, _ in used]
        self._before = [state for _, state in used]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw what was drawn before, within."""
        now = [read() for read, _ in self._generators]
        try:
            for (_, write), state in zip(self._generators, self._before, strict=True):
                write(state)
            yield
        finally:
            for (_, write), state in zip(self._generators, now, strict=True):
                write(state)


def _same(state: Any, other: Any) -> bool:
    if isinstance(state, Tensor):
        return torch.equal(state, other)
    return all(np.array_equal(a, b) for a, b in zip(state, other, strict=True))


class Autocast:
    """Whether operators run in other types, and which, on a device and on the CPU.

    So it is with the function modes that are active (``torch.overrides``), such as
    ``torch.device``'s: torch runs backward outside of them.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._modes = _function_modes()
        self._settings = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted({"cpu", *(device.type for device in devices)})
            if torch.amp.is_autocast_available(kind)
        ]

    @property
    def enabled(self) -> bool:
        """Whether it is on anywhere."""
        return any(enabled for *_, enabled in self._settings)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Restore the recorded generators in the block."""
        with ExitStack() as stack:
            for kind, dtype, enabled in self._settings:
                stack.enter_context(torch.autocast(kind, dtype, enabled))
            for mode in self._modes:
                if mode not in _function_modes():
                    stack.enter_context(mode)
            yield


def _function_modes() -> list[TorchFunctionMode]:
    modes: list[TorchFunctionMode] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes
