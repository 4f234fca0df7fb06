"""Segments: parts of a model that map one tensor to one tensor and can be computed again.

A module names its own in an attribute ``segments``, as those of :mod:`mest_fed.nn.models` do:
method -> the submodules that it calls, none for all. In a model that names none, the children of
every ``nn.Sequential`` that stands in no other are its segments.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


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
        Maps a tensor, images first, to a tensor with as many images.
    function : callable
        The method, bound, as it was found.
    """

    name: str
    module: nn.Module
    method: str
    function: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, owner: str, module: nn.Module, method: str) -> "Segment":
        """Describe a method of a module that has a name in its model."""
        name = f"{owner}.{method}".strip(".").removesuffix(".forward")
        return cls(name, module, method, getattr(module, method))

    def mixes_images(self) -> bool:
        """Whether statistics are taken over the images: of a batch, or running ones."""
        return any(
            isinstance(m, _BatchNorm) or (isinstance(m, _InstanceNorm) and m.track_running_stats)
            for m in self.modules()
        )

    def modules(self) -> list[nn.Module]:
        """Return the modules that it calls, and theirs."""
        called: dict[str, tuple[str, ...]] = getattr(self.module, "segments", {})
        names = called.get(self.method, ())
        parts = [self.module.get_submodule(name) for name in names] or [self.module]
        return [module for part in parts for module in part.modules()]

    def parameters(self) -> list[nn.Parameter]:
        """Return its parameters."""
        return [p for module in self.modules() for p in module.parameters(recurse=False)]


def segments_of(model: nn.Module) -> list[Segment]:
    """Return a model's segments, in the order of its modules."""
    found = _declared(model)
    return found or _children_of_sequentials(model)


def _declared(model: nn.Module) -> list[Segment]:
    return [
        Segment.of(name, module, method)
        for name, module in model.named_modules()
        for method in getattr(module, "segments", ())
    ]


def _children_of_sequentials(model: nn.Module) -> list[Segment]:
    found: list[Segment] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not isinstance(module, nn.Sequential):
            continue
        inside |= set(module.modules())
        found += [
            Segment.of(f"{name}.{child}".strip("."), part, "forward")
            for child, part in module.named_children()
            if any(True for _ in part.parameters())
        ]
    return found
