"""Segments: parts of a model that are run again in backward instead of keeping what they compute.

A module names its own in an attribute ``segments``, as those of :mod:`mest_fed.nn.models` do:
method -> the submodules that it calls, none for all. In a model that names none, the children of
its outermost ``nn.Sequential``, ``nn.ModuleList`` and ``nn.ModuleDict`` are the segments; where it
has none of them, those of its children that have children of their own. ``MemoryOptions.segments``
names others.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.errors import not_allowed
from mest_fed.nn.eligible import matches_nothing

#: The key of the patterns, for errors.
_KEY = "memory.segments"


@dataclass(frozen=True)
class Segment:
    """One method of one module.

    Parameters
    ----------
    name : str
        For people: the module's name in the model, and the method's.
    module : nn.Module
        Whose method it is.
    method : str
        Its name; it may take and return anything.
    function : callable
        The method, bound, as it was found.
    """

    name: str
    module: nn.Module
    method: str
    function: Callable[..., Any]

    @classmethod
    def of(cls, owner: str, module: nn.Module, method: str) -> "Segment":
        """Describe a method of a module that has a name in its model."""
        name = f"{owner}.{method}".strip(".").removesuffix(".forward")
        return cls(name, module, method, getattr(module, method))

    def computes(self, method: Callable[..., Any]) -> bool:
        """Whether its function is this method of a class, and no override of it."""
        return getattr(self.function, "__func__", None) is method

    def modules(self) -> list[nn.Module]:
        """Return the modules that it calls, and theirs."""
        names = _named_by(self.module).get(self.method, ())
        parts = [self.module.get_submodule(name) for name in names] or [self.module]
        return list(dict.fromkeys(module for part in parts for module in part.modules()))

    def weights(self) -> dict[tuple[nn.Module, str], Tensor]:
        """Return its parameters by the places where they stand; a shared one stands in several."""
        return {
            (module, name): weight
            for module in self.modules()
            for name, weight in module._parameters.items()
            if weight is not None
        }

    def parameters(self) -> list[Tensor]:
        """Return its parameters, each once."""
        return list(dict.fromkeys(self.weights().values()))


def segments_of(model: nn.Module, named: str = "") -> list[Segment]:
    """Return a model's segments, in the order of its modules; none where nothing can be told.

    Parameters
    ----------
    model : nn.Module
        Any.
    named : str
        Patterns (``fnmatch``) of the modules that are its segments, separated by commas, such as
        ``encoder.layers.*, head``; they may name segments that the model declares, too. Empty:
        they are found.

    Raises
    ------
    InputError
        If a pattern names nothing, or what cannot be a segment, or segments overlap.
    """
    if named:
        return _chosen(model, [it.strip() for it in named.split(",") if it.strip()])
    found = _declared(model) or list(_in_containers("", model)) or list(_composite(model))
    # A module that stands in several places is one segment.
    return list({(s.module, s.method): s for s in reversed(found)}.values())[::-1]


def _chosen(model: nn.Module, patterns: list[str]) -> list[Segment]:
    """Return the segments that patterns name."""
    declared = {segment.name: segment for segment in _declared(model)}
    modules = {name: module for name, module in model.named_modules() if name}
    found: dict[str, Segment] = {}
    for pattern in patterns:
        names = [name for name in declared | modules if fnmatchcase(name, pattern)]
        if not names:
            raise matches_nothing(_KEY, pattern, list(declared | modules))
        for name in names:
            if any(name.startswith(f"{other}.") for other in names):
                continue  # it is in another one: a star stands for dots, too
            if name not in declared:
                _check_module(name, modules[name])
            found[name] = declared.get(name) or Segment.of(name, modules[name], "forward")
    owners: dict[nn.Module, str] = {}
    for name, segment in found.items():
        for module in segment.modules():
            other = owners.setdefault(module, name)
            if other != name:
                raise not_allowed(_KEY, name, f"segments that do not overlap, as with {other}")
    return _in_order(model, found.values())


def _check_module(name: str, module: nn.Module) -> None:
    """Refuse a module that cannot be a segment."""
    if isinstance(module, _LISTS):
        raise not_allowed(_KEY, name, f"modules that are called, such as {name}.*")
    if not _can_be_segment(module):
        raise not_allowed(_KEY, name, "modules with parameters, and no compiled script")


def _declared(model: nn.Module) -> list[Segment]:
    found = [
        Segment.of(name, module, method)
        for name, module in model.named_modules()
        for method in _named_by(module)
    ]
    return _in_order(model, found)


def _in_order(model: nn.Module, segments: Iterable[Segment]) -> list[Segment]:
    """Sort segments by their first module: what a model names of its end comes last."""
    order = {module: i for i, module in enumerate(model.modules())}
    return sorted(segments, key=lambda it: min(order[module] for module in it.modules()))


def _named_by(module: nn.Module) -> dict[str, tuple[str, ...]]:
    named = getattr(module, "segments", None)
    return named if isinstance(named, dict) else {}  # an attribute of that name may be another's


def _in_containers(name: str, module: nn.Module) -> Iterator[Segment]:
    """Yield the children of the outermost containers; of a list, a sequence of blocks apart."""
    for child, part in module.named_children():
        at = f"{name}.{child}".strip(".")
        looked_into = isinstance(part, _LISTS) or (
            isinstance(part, nn.Sequential) and any(True for it in part for _ in it.children())
        )
        if isinstance(module, nn.Sequential) or (isinstance(module, _LISTS) and not looked_into):
            if _can_be_segment(part):
                yield Segment.of(at, part, "forward")
        else:
            yield from _in_containers(at, part)


_LISTS = nn.ModuleList | nn.ModuleDict


def _composite(model: nn.Module, name: str = "") -> Iterator[Segment]:
    """Yield the children that have children; those of the only one where there is one."""
    blocks = [
        (f"{name}.{child}".strip("."), part)
        for child, part in model.named_children()
        if any(True for _ in part.children()) and _can_be_segment(part)
    ]
    if len(blocks) == 1:
        yield from _composite(blocks[0][1], blocks[0][0])
    else:
        yield from (Segment.of(at, part, "forward") for at, part in blocks)


def _can_be_segment(module: nn.Module) -> bool:
    """Whether a module has parameters, and its state can be seen from Python."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    return not scripted and any(True for _ in module.parameters())
