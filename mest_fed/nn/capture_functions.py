"""Which operators compute a function or a method of tensors: one rule for each, of torch's."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mest_fed.described import one_line
from mest_fed.errors import InputError
from mest_fed.nn.capture_layers import MODULES
from mest_fed.nn.capture_values import Capture, Value, dropped


def _same(made: Capture, label: str, x: Value, *_: Any, **__: Any) -> Value:
    return x


Number = int | float


def _scaled(
    made: Capture, label: str, x: Value, *, factor: Number = 1, offset: Number = 0
) -> Value:
    how = {"factor": float(factor), "offset": float(offset)}
    return made.emit("scale", label, {"x": x}, **how)


def _add(made: Capture, label: str, a: Any, b: Any, *, alpha: Number = 1) -> Any:
    if alpha != 1:
        raise InputError(f"a sum with alpha = {alpha} has no operator; allowed: 1")
    match a, b:
        case Value(), Value():
            if a.shape[1:] == b.shape and len(a.shape) == 3:
                return made.emit("add_positions", label, {"x": a, "table": b.number})
            return made.emit("add", label, {"a": a, "b": b})
        case Value(), _:
            return _scaled(made, label, a, offset=b)
        case _, Value():
            return _scaled(made, label, b, offset=a)
    return a + b


def _subtract(made: Capture, label: str, a: Any, b: Any) -> Any:
    match a, b:
        case Value(), Value():
            return made.emit("subtract", label, {"a": a, "b": b})
        case Value(), _:
            return _scaled(made, label, a, offset=-b)
        case _, Value():
            return _scaled(made, label, b, factor=-1, offset=a)
    return a - b


def _multiply(made: Capture, label: str, a: Any, b: Any) -> Any:
    match a, b:
        case Value(), Value():
            for planes, factors in ((a, b), (b, a)):
                ones = (1,) * (len(planes.shape) - 2)
                if ones and factors.shape == (*planes.shape[:2], *ones) != planes.shape:
                    each = made.reshape(factors, planes.shape[:2], label)
                    return made.emit("multiply_channels", label, {"x": planes, "s": each})
            return made.emit("multiply", label, {"a": a, "b": b})
        case Value(), _:
            return _scaled(made, label, a, factor=b)
        case _, Value():
            return _scaled(made, label, b, factor=a)
    return a * b


def _divide(made: Capture, label: str, a: Any, b: Any) -> Any:
    if isinstance(b, Value):
        raise InputError("a division by a tensor has no operator; allowed: by a number")
    return _scaled(made, label, a, factor=1 / b) if isinstance(a, Value) else a / b


def _negative(made: Capture, label: str, x: Any) -> Any:
    return _scaled(made, label, x, factor=-1) if isinstance(x, Value) else -x


def _elementwise(name: str) -> Callable[..., Value]:
    def rule(
        made: Capture, label: str, x: Value, inplace: bool = False, approximate: str = "none"
    ) -> Value:
        if approximate != "none":
            raise InputError(f"approximate = {approximate!r} has no operator; allowed: none")
        return made.emit(name, label, {"x": x})

    return rule


def _viewed(name: str) -> Callable[..., Value]:
    """Return the rule of a method that changes the shape alone, which torch says."""

    def rule(made: Capture, label: str, x: Value, *args: Any, **kwargs: Any) -> Value:
        try:
            shape = getattr(torch.empty(x.shape, device="meta"), name)(*args, **kwargs).shape
        except (RuntimeError, IndexError) as error:
            raise InputError(one_line(error)) from error
        return made.reshape(x, tuple(shape), label)

    return rule


def _mean(made: Capture, label: str, x: Value, dim: Any, keepdim: bool = False) -> Value:
    axes = sorted(it % len(x.shape) for it in ((dim,) if isinstance(dim, int) else dim))
    if axes == list(range(2, len(x.shape))) and axes:
        y = made.emit("global_average_pool", label, {"x": x})
    elif axes == [1] and len(x.shape) == 3:
        y = made.emit("sequence_mean", label, {"x": x})
    else:
        raise InputError(f"the mean over dim = {dim} of {x.shape} has no operator")
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    return made.reshape(y, shape, label) if keepdim else y


def _sum(made: Capture, label: str, x: Value, dim: Any, keepdim: bool = False) -> Value:
    mean = _mean(made, label, x, dim, keepdim)
    count = math.prod(x.shape[it] for it in ((dim,) if isinstance(dim, int) else dim))
    return _scaled(made, label, mean, factor=count)


def _transpose(made: Capture, label: str, x: Value, first: int, second: int) -> Value:
    axes = first % len(x.shape), second % len(x.shape)
    return x if axes[0] == axes[1] else made.emit("transpose", label, {"x": x}, axes=axes)


def _permute(made: Capture, label: str, x: Value, *order: Any) -> Value:
    wanted = list(order[0]) if isinstance(order[0], Sequence) else list(order)
    wanted = [it % len(x.shape) for it in wanted]
    if sorted(wanted) != list(range(len(x.shape))):
        raise InputError(f"permute{tuple(wanted)} is no order of the axes of {x.shape}")
    for place in range(len(wanted)):
        other = wanted[place]
        x = _transpose(made, label, x, place, other)
        # what stood at `place` is now at `other`
        wanted = [other if it == place else place if it == other else it for it in wanted]
    return x


def _cat(made: Capture, label: str, tensors: Any, dim: int = 0) -> Value:
    axis = dim % len(tensors[0].shape)
    if axis == 0:
        raise InputError("tensors one behind the other in the batch have no operator")
    moved = [_transpose(made, label, it, 1, axis) for it in tensors]
    whole = moved[0]
    for part in moved[1:]:
        whole = made.emit("concat", label, {"a": whole, "b": part})
    return _transpose(made, label, whole, 1, axis)


def _cut(made: Capture, label: str, x: Value, sizes: Sequence[int], dim: int) -> tuple[Value, ...]:
    """Return parts of these sizes along an axis, one behind the other."""
    axis, parts = dim % len(x.shape), []
    if axis == 0:
        raise InputError("parts of the batch have no operator")
    rest = _transpose(made, label, x, 1, axis)
    for size in sizes[:-1]:
        one, *inner = rest.shape[0], *rest.shape[2:]
        shapes = {"da": (one, size, *inner), "db": (one, rest.shape[1] - size, *inner)}
        numbers = made.builder.operator("concat_gradient", {"dc": rest.number}, shapes, label)
        part, rest = (Value(it, shapes[key]) for it, key in zip(numbers, shapes, strict=True))
        parts.append(part)
    return tuple(_transpose(made, label, it, 1, axis) for it in (*parts, rest))


def _chunk(made: Capture, label: str, x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    size = -(-x.shape[dim] // chunks)
    return _split(made, label, x, size, dim)


def _split(
    made: Capture, label: str, x: Value, split_size: int | Sequence[int], dim: int = 0
) -> tuple[Value, ...]:
    if isinstance(split_size, int):
        length = x.shape[dim]
        split_size = [min(split_size, length - at) for at in range(0, length, split_size)]
    return _cut(made, label, x, split_size, dim)


def _by_module(kind: type[nn.Module], most: int = 9) -> Callable[..., Value]:
    """Return the rule of a function that does what a module does, with the same settings.

    ``most`` are the settings whose order is the same.
    """
    taken = signature(kind).parameters

    def rule(made: Capture, label: str, x: Value, *args: Any, **kwargs: Any) -> Value:
        if len(args) > most:
            raise InputError(f"more than {most} settings without their names have no operator")
        # A function has settings more than its module; those that are not None or false count.
        settings = {
            key: it for key, it in kwargs.items() if key in taken or not (it is None or it is False)
        }
        settings.pop("_stacklevel", None)
        return MODULES[kind](made, kind(*args, **settings), label, x)

    return rule


def _getattr(made: Capture, label: str, value: Any, name: str) -> Any:
    if isinstance(value, Value) and name != "shape":
        raise InputError(f"the attribute {name!r} of a tensor is not known; allowed: shape")
    return getattr(value, name)


def _getitem(made: Capture, label: str, value: Any, index: Any) -> Any:
    if not isinstance(value, Value):
        return value[index]
    if isinstance(index, slice) and index.start in (None, 0) and index.step in (None, 1):
        rows = len(range(value.shape[0])[index])
        parameter = made.builder.buffers[value.number].role == "parameter"
        if rows == value.shape[0] or parameter:
            return Value(value.number, (rows, *value.shape[1:]))
    if isinstance(index, tuple) and len(index) > 1:
        rest = (index[0], *index[2:])
        if isinstance(index[1], int) and all(it == slice(None) or it is ... for it in rest):
            place = index[1] % value.shape[1]
            return made.emit("select", label, {"x": value}, index=place)
    raise InputError(
        "a part of a tensor has no operator; allowed: the first rows of a parameter, x[:, position]"
    )


def _size(made: Capture, label: str, x: Value, dim: int | None = None) -> Any:
    return x.shape if dim is None else x.shape[dim]


def _dropout(  # noqa: PLR0917 - as torch has it
    made: Capture,
    label: str,
    x: Value,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Value:
    return dropped(made, p, label, x) if training else x


_VIEWS = ("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten")

#: Function of a trace -> ``rule(capture, label, *arguments)``.
FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), _subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _multiply),
    **dict.fromkeys((operator.truediv, torch.div), _divide),
    **dict.fromkeys((operator.neg, torch.neg), _negative),
    **dict.fromkeys((torch.relu, functional.relu), _elementwise("relu")),
    functional.relu6: _elementwise("relu6"),
    functional.silu: _elementwise("silu"),
    functional.gelu: _elementwise("gelu"),
    functional.hardswish: _elementwise("hard_swish"),
    functional.hardsigmoid: _elementwise("hard_sigmoid"),
    **dict.fromkeys((torch.sigmoid, functional.sigmoid), _elementwise("sigmoid")),
    **dict.fromkeys((torch.tanh, functional.tanh), _elementwise("tanh")),
    functional.leaky_relu: _by_module(nn.LeakyReLU),
    functional.elu: _by_module(nn.ELU),
    **dict.fromkeys((torch.softmax, functional.softmax), _by_module(nn.Softmax, 1)),
    **dict.fromkeys((torch.max_pool1d, functional.max_pool1d), _by_module(nn.MaxPool1d, 4)),
    **dict.fromkeys((torch.max_pool2d, functional.max_pool2d), _by_module(nn.MaxPool2d, 4)),
    functional.avg_pool1d: _by_module(nn.AvgPool1d),
    functional.avg_pool2d: _by_module(nn.AvgPool2d),
    functional.adaptive_avg_pool1d: _by_module(nn.AdaptiveAvgPool1d),
    functional.adaptive_avg_pool2d: _by_module(nn.AdaptiveAvgPool2d),
    functional.interpolate: _by_module(nn.Upsample, 3),
    functional.dropout: _dropout,
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    torch.chunk: _chunk,
    torch.split: _split,
    torch.transpose: _transpose,
    torch.permute: _permute,
    torch.sum: _sum,
    torch.flatten: _viewed("flatten"),
    torch.mean: _mean,
    getattr: _getattr,
    operator.getitem: _getitem,
    math.prod: lambda made, label, value: math.prod(value),
}

#: Name of a tensor's method -> the same.
METHODS: Mapping[Any, Callable[..., Any]] = {
    **{name: _viewed(name) for name in _VIEWS},
    **dict.fromkeys(("add", "add_"), _add),
    **dict.fromkeys(("sub", "sub_"), _subtract),
    **dict.fromkeys(("mul", "mul_"), _multiply),
    **dict.fromkeys(("div", "div_"), _divide),
    "neg": _negative,
    "chunk": _chunk,
    "split": _split,
    "sigmoid": _elementwise("sigmoid"),
    "tanh": _elementwise("tanh"),
    "softmax": _by_module(nn.Softmax, 1),
    "transpose": _transpose,
    "permute": _permute,
    "sum": _sum,
    **dict.fromkeys(("relu", "relu_"), _elementwise("relu")),
    "contiguous": _same,
    "mean": _mean,
    "size": _size,
}
