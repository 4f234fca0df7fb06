"""Which mask the rows of ``values`` belong to: a digest of the mask, and tensors that carry it.

Row i of two layers' values means the same weight only where both masks are equal. A mean over
tensors (weight averaging, a strategy that knows nothing of masks) cannot see that, so the values
say it themselves: :class:`Values` is a tensor that knows its mask and refuses to be combined, row
by row, with values of another one.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from functools import lru_cache
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

from mest_fed.errors import InputError
from mest_fed.nn.slots import gathered
from mest_fed.sparsity import Layout, Mask

#: Eight numbers in [0, 1), each a multiple of 2**-20, which float32 holds exactly.
MaskDigest = tuple[float, ...]
DIGEST_LENGTH = 8

#: Run code without the dispatch to :class:`Values`: results are plain tensors, nothing is checked.
plain_tensors = torch._C.DisableTorchFunctionSubclass


def transformed() -> bool:
    """Say whether a transform of ``torch.func`` (vmap, grad, ...) runs."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.maybe_current_level() is not None


def digest_of(layout: Layout, slots: Tensor) -> MaskDigest:
    """Name a mask: eight numbers that depend on the layout and on every slot."""
    hashed = hashlib.blake2b(repr(layout).encode(), digest_size=4 * DIGEST_LENGTH)
    hashed.update(np.ascontiguousarray(slots.detach().cpu().numpy(), "<i4").data)
    numbers = (np.frombuffer(hashed.digest(), "<u4") >> 12) / 2.0**20
    return tuple(numbers.tolist())


class Values(Tensor):
    """Active values that know their mask; a parameter where :meth:`parameter` made it.

    Copies (``detach``, ``data``, ``clone``, ``to``), what is computed element by element, and
    gradients (``grad``, ``torch.autograd.grad``) know it too. ``zeros_like`` and sums do not.
    Pickled, it is a plain tensor.

    Attributes
    ----------
    masks : tuple of MaskDigest
        The mask; those of all layers where ``torch.cat`` joined their values; empty if unknown (on
        the meta device), and then nothing is refused.
    joined : bool
        Whether it is a vector that ``torch.cat`` joined, or a part of one.
    """

    masks: tuple[MaskDigest, ...] = ()
    joined = False
    trainer: tuple[Any, int] | None = None
    """Weak reference to the last optimizer, and which state it had; see ``trainer_of``."""

    @classmethod
    def parameter(cls, values: Tensor, requires_grad: bool) -> "Values":
        """Make a parameter of a plain tensor; it shares its memory."""
        with plain_tensors():
            made = values.detach().as_subclass(cls)
            made.requires_grad_(requires_grad)
        made._is_param = True  # what isinstance(..., nn.Parameter) looks at
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function on values; refuse to combine rows of unlike masks.

        Raises
        ------
        InputError
            If the function combines values of unlike masks element by element.
        """
        kwargs = kwargs or {}
        with plain_tensors():
            # A compiled graph computes one model, and calls operators by their overloads.
            if torch.compiler.is_compiling():
                return func(*args, **kwargs)
            rule = _rule(func)
            if rule is _Rule.NONE:
                return func(*args, **kwargs)
            if rule is _Rule.GRADIENT:
                return _with_gradients(args, kwargs, func(*args, **kwargs))
            arguments = (*args, *kwargs.values()) if kwargs else args
            if rule is _Rule.COMBINE:  # the most frequent one, at the least cost
                values = [each for each in arguments if isinstance(each, Values) and each.masks]
                if len(values) > 1:
                    _refuse_unlike(func, values)
                return _marked(func.__name__, func(*args, **kwargs), arguments)
            if rule in (_Rule.STACK, _Rule.LISTS):
                for together in _combined(rule, arguments):
                    _refuse_unlike(func, together)
            return _with_masks(rule, func.__name__, arguments, func(*args, **kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Values":
        """Copy as torch copies parameters: without the gradient."""
        if id(self) in memo:
            copied: Values = memo[id(self)]
            return copied
        with plain_tensors():
            if not self.is_leaf:
                raise RuntimeError("only values that are no result of a graph can be deep-copied")
            copied = self.detach().clone().as_subclass(Values)
            copied.requires_grad_(self.requires_grad)
        copied.masks, copied.joined = self.masks, self.joined
        if isinstance(self, nn.Parameter):
            copied._is_param = True
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a plain tensor or parameter, which loads without this library."""
        with plain_tensors():
            plain = self.as_subclass(Tensor) if not self.is_leaf else self.detach()
            if isinstance(self, nn.Parameter):
                plain = nn.Parameter(plain, self.requires_grad)
            elif self.is_leaf:
                plain.requires_grad_(self.requires_grad)
            return plain.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


# torch runs its fast optimizer loops on a GPU for types on this list only; DTensor is added alike.
torch_optimizer._foreach_supported_types.append(Values)


class _Rule(Enum):
    """What a function does with the values among its arguments."""

    NONE = auto()  # reads them: nothing is checked, and the result has no mask
    MARK = auto()  # shows them in another form
    GRADIENT = auto()  # gives their gradients
    JOIN = auto()  # lays those of a list end to end
    STACK = auto()  # combines those of a list
    LISTS = auto()  # combines those at the same place of several lists
    COMBINE = auto()  # combines its arguments element by element


_NAMES = {
    _Rule.NONE: (
        *("eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "equal", "allclose", "isclose"),
        *("matmul", "mm", "__matmul__", "__rmatmul__", "bmm", "linear", "einsum", "tensordot"),
        *("backward", "_has_compatible_shallow_copy_type"),
        *(f"{kind}_like" for kind in ("zeros", "ones", "empty", "full", "rand", "randn")),
    ),
    _Rule.GRADIENT: ("grad",),
    _Rule.MARK: ("view_as", "reshape_as", "expand_as", "type_as"),
    _Rule.JOIN: ("cat", "concat", "concatenate"),
    _Rule.STACK: ("stack", "hstack", "vstack", "dstack", "column_stack", "row_stack"),
}
_BY_NAME = {name: rule for rule, names in _NAMES.items() for name in names}
#: These leave nothing of what a tensor held.
_OVERWRITE = frozenset(("zero_", "fill_"))
#: Of a vector of several layers' values, these give parts that may be any layer's.
_PARTS = frozenset(("__getitem__", "narrow", "split", "split_with_sizes", "chunk", "unbind"))


@lru_cache(maxsize=1024)
def _rule(func: Any) -> _Rule:
    name = func.__name__
    if isinstance(func, torch._ops.OpOverload) or name.startswith(("new_", "is_")):
        return _Rule.NONE
    if name in ("__get__", "__set__", "__delete__"):  # of an attribute, such as shape
        if func.__self__ is Tensor.grad and name == "__get__":
            return _Rule.GRADIENT
        combined = func.__self__ in (Tensor.data, Tensor.grad)
        return _Rule.COMBINE if combined else _Rule.NONE
    if name.startswith(("_foreach_", "_fused_")):
        return _Rule.LISTS
    return _BY_NAME.get(name, _Rule.COMBINE)


def _is_values(thing: Any) -> TypeGuard[Values]:
    return isinstance(thing, Values) and bool(thing.masks)


def _combined(rule: _Rule, arguments: tuple[Any, ...]) -> Iterable[Iterable[Any]]:
    """Return what a function of lists combines element by element."""
    lists = [each for each in arguments if isinstance(each, list | tuple)]
    return lists if rule is _Rule.STACK else zip(*lists, strict=False)


def _refuse_unlike(func: Any, together: Iterable[Any]) -> None:
    values = [each for each in together if isinstance(each, Values) and each.masks]
    for other in values[1:]:
        if not _agree(values[0], other):
            what = "an assignment" if func.__name__ == "__set__" else func.__name__
            raise InputError(
                f"{what} would combine active values of unlike masks, whose rows are different"
                " weights; give both models one mask first (mest_fed.nn.match_masks), and the"
                " optimizer to the Mutator that changes a mask"
            )


def _agree(first: Values, second: Values) -> bool:
    if first.joined == second.joined:
        return first.masks == second.masks
    part, whole = (second, first) if first.joined else (first, second)
    return part.masks[0] in whole.masks


def _with_masks(rule: _Rule, name: str, arguments: tuple[Any, ...], result: Any) -> Any:
    """Hand the mask on to what a function made of values."""
    if rule is _Rule.LISTS:
        lists = [each for each in arguments if isinstance(each, list | tuple)]
        made = lists[0] if name.endswith("_") else result
        parts = [_marked(name, part, rest) for part, *rest in zip(made, *lists, strict=False)]
        return result if name.endswith("_") else type(result)(parts)
    if rule is _Rule.JOIN:
        masks = [mask for part in filter(_is_values, arguments[0]) for mask in part.masks]
        return _mark(result, tuple(masks), joined=True) if masks else result
    if isinstance(result, tuple) and name in _PARTS:
        return tuple(_marked(name, part, arguments) for part in result)
    return _marked(name, result, arguments)


def _marked(name: str, result: Any, arguments: Sequence[Any]) -> Any:
    if isinstance(result, Values):  # edited in place
        if name in _OVERWRITE and not isinstance(result, nn.Parameter):
            result.masks = ()
        return result
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return result
    for source in filter(_is_values, arguments):
        whole = result.numel() == source.numel() and result.dim() > 0
        if whole or (source.joined and name in _PARTS):
            if any(result is argument for argument in arguments):  # a sum, edited in place
                return _become(result, source)
            return _mark(result, source.masks, joined=source.joined)
    return result


def _with_gradients(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """Attach to gradients the masks of their parameters.

    The arguments are those of ``Tensor.grad`` or of ``torch.autograd.grad``.
    """
    if result is None or _is_values(result):
        return result  # there is none, or it knows
    if isinstance(result, Tensor):
        inputs, gradients = args[:1], (result,)
    else:
        given = kwargs.get("inputs", args[1] if len(args) > 1 else ())
        inputs, gradients = (given,) if isinstance(given, Tensor) else tuple(given), result
    for source, gradient in zip(inputs, gradients, strict=False):
        if _is_values(source) and isinstance(gradient, Tensor):
            _become(gradient, source)
    return result


def _become(tensor: Tensor, source: Values) -> Values:
    """Turn a tensor into values of the source's mask; it stays the same object."""
    tensor.__class__ = Values
    values = cast(Values, tensor)
    values.masks, values.joined = source.masks, source.joined
    return values


def _mark(result: Tensor, masks: tuple[MaskDigest, ...], *, joined: bool) -> Values:
    marked = result.as_subclass(Values)
    marked.masks, marked.joined = masks, joined
    return marked


def active_values(layout: Layout, mask: Mask, weight: nn.Parameter) -> nn.Parameter:
    """Read the active values of a dense weight, and of its gradient; they train if it does."""
    at, active = torch.from_numpy(mask.slots), len(mask) > 0
    if active:  # torch imports sympy to read a meta tensor
        at = at.to(weight.device)
    values = gathered(layout, weight.detach(), at) if active else torch.empty(0, layout.width)
    parameter = nn.Parameter(values, weight.requires_grad)
    if weight.grad is not None:
        parameter.grad = gathered(layout, weight.grad, at)
    return parameter


def inherit(parameter: nn.Parameter, old: nn.Parameter, *, shared: bool = True) -> None:
    """Hand on what a user hung on a parameter: attributes and hooks.

    Hooks are shared if the parameter takes the place of the old one, so that their handles stay
    valid, and are not if it stands beside it.
    """
    own = (
        "masks",
        "joined",
        "trainer",
        "_is_param",
    )  # of Values, which say what they themselves are
    vars(parameter).update({name: it for name, it in vars(old).items() if name not in own})
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        hooks = getattr(old, name)
        if hooks is not None:
            setattr(parameter, name, hooks if shared else OrderedDict(hooks))
