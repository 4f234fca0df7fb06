"""Models of which a trace would miss something: they are refused, and left as they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.errors import InputError


@contextmanager
def refusing_changes(model: nn.Module) -> Iterator[None]:
    """Refuse a model whose code changes its buffers or attributes while it is traced.

    It is left as it was. A program would change nothing of it.

    Raises
    ------
    InputError
        If it does.
    """
    before = [
        (module, dict(vars(module)), {n: (t, t._version, t.clone()) for n, t in held.items()})
        for module in model.modules()
        for held in [{n: t for n, t in module._buffers.items() if t is not None}]
    ]
    changed = False
    try:
        yield
    finally:  # also where it is refused for another reason
        for module, attributes, buffers in before:
            changed |= _restore(module, attributes, buffers)
    if changed:
        raise InputError("its code changes buffers or attributes: the model is no program")


@torch.no_grad()
def _restore(
    module: nn.Module, attributes: dict[str, Any], buffers: dict[str, tuple[Tensor, int, Tensor]]
) -> bool:
    """Give a module what it had before; return whether that was something else."""
    now = vars(module)
    same = now.keys() == attributes.keys() and all(now[n] is it for n, it in attributes.items())
    for name, (tensor, version, copy) in buffers.items():
        if module._buffers.get(name) is not tensor or tensor._version != version:
            tensor.copy_(copy)
            module._buffers[name] = tensor
            same = False
    if not same:
        vars(module).clear()
        vars(module).update(attributes)
    return not same


def check_plain(model: nn.Module, *, training: bool) -> None:
    """Refuse a model of which a trace would miss something.

    Raises
    ------
    InputError
        If a module has a hook, or is in another mode than the model.
    """
    for name, module in model.named_modules():
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        if any(hooks):
            raise InputError(f"module {name!r} has a hook: the model is no program")
        if module.training != training:
            raise InputError(f"module {name!r} has a mode of its own: the model is no program")
