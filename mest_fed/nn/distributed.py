"""Sparse models under ``DistributedDataParallel``.

It averages gradients through hooks on the parameters that it found when it was made. Hooks do not
outlive a change of a parameter's shape, and its buffers have the old size, so that such a change
needs a new wrapper.
"""

import gc
from collections.abc import Iterable

import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from mest_fed.errors import InputError

#: How ``torch.compile`` names the module that it wraps.
_COMPILED = "_orig_mod"


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model behind wrappers that change how it runs, not what it is."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif _COMPILED in model._modules:
            model = model.get_submodule(_COMPILED)
        else:
            return model


def running() -> bool:
    """Say whether this process is one of several of ``torch.distributed``."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def data_parallel(parameters: Iterable[nn.Parameter]) -> DistributedDataParallel | None:
    """Return the wrapper that averages the gradients of some parameters, or None."""
    if not running():
        return None
    wanted = {id(parameter) for parameter in parameters}
    # torch keeps no list of wrappers; one that waits for the collector averages nothing any more.
    gc.collect()
    for found in gc.get_objects():
        if issubclass(type(found), DistributedDataParallel) and any(
            id(parameter) in wanted for parameter in found.parameters()
        ):
            wrapper: DistributedDataParallel = found
            return wrapper
    return None


def refuse_new_shape(parameters: Iterable[nn.Parameter]) -> None:
    """Refuse to change the shape of parameters while a wrapper averages their gradients.

    Raises
    ------
    InputError
        If one does.
    """
    if data_parallel(parameters) is not None:
        raise InputError(
            "the number of live weights cannot change under DistributedDataParallel; delete the "
            "wrapper before the change and wrap the model again after it, or take a method that "
            "keeps the number (mest-em, set, rigl)"
        )


def averaged(gradient: Tensor, parameter: nn.Parameter) -> Tensor:
    """Average a gradient over the processes that average the parameter's, if there are any."""
    wrapper = data_parallel([parameter])
    if wrapper is None:
        return gradient
    total = gradient.clone()
    torch.distributed.all_reduce(total, group=wrapper.process_group)
    return total / torch.distributed.get_world_size(wrapper.process_group)
