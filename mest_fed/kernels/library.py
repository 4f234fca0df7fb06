"""Registers torch operators under ``torch.ops.mest_fed``, with types."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., object])

_library = torch.library.Library("mest_fed", "DEF")  # type: ignore[no-untyped-call]

#: The operators.
OPERATORS = torch.ops.mest_fed


def define(schema: str) -> None:
    """Declare an operator."""
    _library.define(schema)  # type: ignore[no-untyped-call]


def implement(name: str, where: str = "CPU") -> Callable[[Function], Function]:
    """Register what computes an operator on the CPU, or where one of torch's dispatch keys says."""

    def register(function: Function) -> Function:
        _library.impl(name, function, where)  # type: ignore[no-untyped-call]
        return function

    return register


def fake(name: str) -> Callable[[Function], Function]:
    """Register what says an operator's shapes without computing."""

    def register(function: Function) -> Function:
        torch.library.register_fake(f"mest_fed::{name}", function, lib=_library)
        return function

    return register


def same_device(*arguments: object) -> None:
    """Refuse meta tensors beside real ones: torch asks for a shape and takes it for numbers.

    Raises
    ------
    ValueError
        If the tensors among the arguments are on several devices.
    """
    devices = {argument.device.type for argument in arguments if isinstance(argument, Tensor)}
    if len(devices) > 1:
        raise ValueError(f"tensors on several devices: {sorted(devices)}")
