"""What is computed and must not be written: the dense weight of a sparse layer, pruned values.

``layer.weight`` of a sparse layer is built anew from its values, so that a write into it would be
lost without a word. It is a :class:`DenseWeight`, which refuses to be written, and is otherwise
what any tensor is. The other way round, torch's own tools (``nn.utils.prune``,
``parametrizations``, the old ``weight_norm``) may compute a layer's values from other parameters;
:func:`make_permanent` ends that.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mest_fed.errors import InputError


class DenseWeight(Tensor):
    """The weight that a sparse layer stands for, which can be read and not written.

    Its methods that write, and those of its views, raise an InputError; whatever else is computed
    of it is a plain tensor, and its gradient reaches the layer's values. It takes no part in
    torch's dispatch to subclasses, so that fused operators, such as that of a transformer's layer
    in evaluation, take it as they take any weight.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy as a plain tensor."""
        return Tensor.detach(self).as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain tensor, which loads without this library."""
        plain = Tensor.detach(self).as_subclass(Tensor)
        return plain.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def _refuse(name: str) -> Callable[..., NoReturn]:
    def method(*_: Any, **__: Any) -> NoReturn:
        raise InputError(
            f"{name} would write into the weight of a sparse layer, which is computed from its "
            "values, and would be lost; allowed: to change layer.values"
        )

    return method


def _view(name: str) -> Callable[..., Any]:
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _marked(getattr(Tensor, name)(self, *args, **kwargs), self)

    return method


def _view_attribute(name: str) -> Callable[[Tensor], Any]:
    def read(self: Tensor) -> Any:
        return _marked(getattr(Tensor, name).__get__(self), self)

    return read


def _marked(result: Any, weight: Tensor) -> Any:
    """Make views of the weight what it is; copies stay plain tensors."""
    if isinstance(result, tuple | list):
        return type(result)([_marked(it, weight) for it in result])
    same = isinstance(result, Tensor) and (
        result.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    )
    return result.as_subclass(DenseWeight) if same else result


def _writes(name: str) -> bool:
    """Say whether a method of a tensor writes into it."""
    if name.startswith("__"):
        return name == "__setitem__" or (name[2:3] == "i" and f"__{name[3:]}" in dir(Tensor))
    return name.endswith("_") and not name.startswith("_") and name != "share_memory_"


_VIEWS = (
    *("detach", "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "expand"),
    *("t", "transpose", "swapaxes", "permute", "movedim", "squeeze", "unsqueeze", "narrow"),
    *("select", "diagonal", "unbind", "chunk", "split", "tensor_split", "contiguous", "to"),
    *("__getitem__", "__iter__", "float", "double", "cpu"),
)
for _name in filter(_writes, dir(Tensor)):
    setattr(DenseWeight, _name, _refuse(_name))
for _name in _VIEWS:
    setattr(DenseWeight, _name, _view(_name))
for _name in ("T", "mT"):
    setattr(DenseWeight, _name, property(_view_attribute(_name)))
setattr(DenseWeight, "data", property(_view("detach"), _refuse("data")))  # noqa: B010 - as above


@torch.no_grad()
def make_permanent(module: nn.Module) -> None:
    """Make parameters of what pruning, norms or parametrizations compute in a module, as it is now.

    Parameters
    ----------
    module : nn.Module
        Changed in place; its children are not.
    """
    if parametrize.is_parametrized(module):
        # Not remove_parametrizations: it edits a class that copies of the module share.
        computed = module.get_submodule("parametrizations")
        parameters = {
            each: nn.Parameter(getattr(module, each).clone(), any(map(_trains, part.parameters())))
            for each, part in computed.named_children()
        }
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        for each, parameter in parameters.items():
            module.register_parameter(each, parameter)
    for key, hook in list(module._forward_pre_hooks.items()):
        if not isinstance(hook, _COMPUTING):
            continue
        name = hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name
        hook(module, ())  # which computes it
        del module._forward_pre_hooks[key]
        current = getattr(module, name).detach().clone()
        trains = any(_trains(it) for n, it in module.named_parameters() if n.startswith(f"{name}_"))
        for held in (module._parameters, module._buffers, vars(module)):
            for each in [it for it in held if it == name or it.startswith(f"{name}_")]:
                del held[each]
        module.register_parameter(name, nn.Parameter(current, trains))


_COMPUTING = (prune.BasePruningMethod, WeightNorm, SpectralNorm)


def _trains(parameter: Tensor) -> bool:
    return parameter.requires_grad
