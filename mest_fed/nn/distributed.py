"""Sparse models under ``DistributedDataParallel``.

It averages gradients through hooks on the parameters that it found when it was made. Hooks do not
outlive a change of a parameter's shape, and its buffers have the old size, so that such a change
needs a new wrapper.
"""

import gc
from collections.abc import Iterable, Sequence

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
    found = _wrapper_of(wanted)
    if found is not None:
        del found
        gc.collect()  # a wrapper that nothing refers to any more averages nothing
    return _wrapper_of(wanted)


def _wrapper_of(wanted: set[int]) -> DistributedDataParallel | None:
    # torch keeps no list of its wrappers.
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
            "the number of active weights cannot change under DistributedDataParallel; delete the "
            "wrapper before the change and wrap the model again after it, or take a method that "
            "keeps the number (mest-em, set, rigl)"
        )


def average(gradients: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    """Average gradients, in place, over the processes that average the parameters', if any do."""
    wrapper = data_parallel(parameters)
    if wrapper is None:
        return
    for gradient in gradients:
        torch.distributed.all_reduce(gradient, group=wrapper.process_group)
        gradient.div_(torch.distributed.get_world_size(wrapper.process_group))
