"""Which operators compute a module: one rule for each class, of torch's and of ours."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mest_fed.errors import InputError, not_allowed
from mest_fed.nn import dense, norms
from mest_fed.nn.capture_recurrent import recurrent
from mest_fed.nn.capture_schemes import Inputs, Product, sparse_product
from mest_fed.nn.capture_values import Capture, Value, dropped
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.models.tokens import Attention
from mest_fed.nn.products import SparseConv1d, SparseConv2d, SparseLinear

Rule = Callable[..., Value]
Pair = tuple[int, int]


def pair(value: Any) -> Pair:
    """Return a setting of both axes, which torch also takes as one number."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _across(value: Any, height: int) -> Pair:
    """Return a setting of the second axis alone, for planes of height 1."""
    return height, value if isinstance(value, int) else value[0]


def _held(capture: Capture, module: nn.Module, name: str, leaf: str) -> int | None:
    """Return the buffer of what a module holds itself; None if it has none."""
    tensor: Tensor | None = getattr(module, leaf)
    return None if tensor is None else capture.held(tensor, f"{name}.{leaf}")


def _refuse(module: nn.Module, what: str, allowed: str) -> InputError:
    kind = type(module).__name__
    return InputError(f"a {kind} with {what} has no operator; allowed: {allowed}")


def _convolution(capture: Capture, layer: Any, name: str, x: Value) -> Value:
    flat = isinstance(layer, nn.Conv1d | SparseConv1d)
    _check_convolution(layer, name)
    padding = 0 if layer.padding == "valid" else layer.padding
    how: dict[str, Any] = {"stride": pair(layer.stride), "padding": pair(padding)}
    if flat:
        how = {"stride": _across(layer.stride, 1), "padding": _across(padding, 0)}
    if flat:
        x = capture.reshape(x, (*x.shape[:2], 1, *x.shape[2:]), name)
    bias = _held(capture, layer, name, "bias")
    if isinstance(layer, SparseLayer):
        shape = layer.layout.shape
        shape = (*shape[:2], 1, *shape[2:]) if flat else shape
        y = sparse_product(capture, layer, name, Product("conv2d", shape, how, x, bias))
    else:
        kernel = (1, *layer.kernel_size) if flat else layer.kernel_size
        shape = (layer.out_channels, layer.in_channels // layer.groups, *kernel)
        weight = capture.held(layer.weight, f"{name}.weight", shape)
        inputs: Inputs = {"x": x, "w": weight, "b": bias}
        y = capture.emit("conv2d", name, inputs, **how, groups=layer.groups)
    return capture.reshape(y, (*y.shape[:2], *y.shape[3:]), name) if flat else y


def _check_convolution(layer: Any, name: str) -> None:
    dilation = layer.dilation
    if any(it != 1 for it in ((dilation,) if isinstance(dilation, int) else dilation)):
        raise _refuse(layer, f"dilation = {dilation}", "1")
    if layer.padding_mode != "zeros":
        raise _refuse(layer, f"padding_mode = {layer.padding_mode!r}", "zeros")
    if isinstance(layer.padding, str) and layer.padding != "valid":
        raise _refuse(layer, f"padding = {layer.padding!r}", "numbers, valid")
    if isinstance(layer, SparseLayer) and layer.groups != 1:
        raise _refuse(layer, f"groups = {layer.groups}", "1 for a sparse layer")


def _linear(capture: Capture, layer: Any, name: str, x: Value) -> Value:
    lead, features = x.shape[:-1], x.shape[-1]
    rows = 1
    for length in lead:
        rows *= length
    x = capture.reshape(x, (rows, features), f"{name}:input")
    bias = _held(capture, layer, name, "bias")
    if isinstance(layer, SparseLayer):
        of = Product("linear", layer.layout.shape, {}, x, bias)
        y = sparse_product(capture, layer, name, of)
    else:
        weight = _held(capture, layer, name, "weight")
        y = capture.emit("linear", name, {"x": x, "w": weight, "b": bias})
    return capture.reshape(y, (*lead, y.shape[-1]), name)


def _affine(capture: Capture, norm: nn.Module, name: str) -> dict[str, Value | int | None]:
    gamma, beta = (_held(capture, norm, name, leaf) for leaf in ("weight", "bias"))
    if gamma is None or beta is None:
        raise _refuse(norm, "no weight or no bias", "both")
    return {"gamma": gamma, "beta": beta}


def _group_norm(  # noqa: PLR0917 - as the layer is called
    capture: Capture,
    norm: nn.GroupNorm,
    name: str,
    x: Value,
    residual: Value | None = None,
    relu: bool = False,
) -> Value:
    inputs = {"x": x, "residual": residual, **_affine(capture, norm, name)}
    how = {"groups": norm.num_groups, "epsilon": float(norm.eps), "relu": relu}
    return capture.emit("group_norm", name, inputs, **how)


def _batch_norm(  # noqa: PLR0917 - as the layer is called
    capture: Capture,
    norm: nn.BatchNorm2d,
    name: str,
    x: Value,
    residual: Value | None = None,
    relu: bool = False,
) -> Value:
    if norm.momentum is None or norm.running_mean is None:
        raise _refuse(norm, "momentum = None or no running statistics", "both")
    inputs = {"x": x, "residual": residual, **_affine(capture, norm, name)}
    inputs["running_mean"] = _held(capture, norm, name, "running_mean")
    inputs["running_variance"] = _held(capture, norm, name, "running_var")
    how: dict[str, Any] = {"epsilon": float(norm.eps), "relu": relu}
    if not capture.training:
        return capture.emit("batch_norm_inference", name, inputs, **how)
    return capture.emit("batch_norm", name, inputs, momentum=float(norm.momentum), **how)


def _layer_norm(capture: Capture, norm: nn.LayerNorm, name: str, x: Value) -> Value:
    inputs = {"x": x, **_affine(capture, norm, name)}
    axes = len(norm.normalized_shape)
    return capture.emit("layer_norm", name, inputs, axes=axes, epsilon=float(norm.eps))


def _activation(operator: str) -> Rule:
    def rule(capture: Capture, module: nn.Module, name: str, x: Value) -> Value:
        if getattr(module, "approximate", "none") != "none":
            raise _refuse(module, "an approximation", "approximate = 'none'")
        return capture.emit(operator, name, {"x": x})

    return rule


def _max_pool(capture: Capture, pool: Any, name: str, x: Value) -> Value:
    if pool.return_indices or pool.dilation not in (1, (1, 1)):
        raise _refuse(pool, "indices or a dilation", "neither")
    return _pooled(capture, "max_pool2d", pool, name, x, ceil=bool(pool.ceil_mode))


def _average_pool(capture: Capture, pool: Any, name: str, x: Value) -> Value:
    padded = pool.padding not in (0, (0,), (0, 0)) and not pool.count_include_pad
    if pool.ceil_mode or padded or getattr(pool, "divisor_override", None) is not None:
        raise _refuse(pool, "a setting of its own", "kernel, stride and padding")
    return _pooled(capture, "average_pool2d", pool, name, x)


def _pooled(capture: Capture, operator: str, pool: Any, name: str, x: Value, **more: Any) -> Value:
    flat = isinstance(pool, nn.MaxPool1d | nn.AvgPool1d)
    stride = pool.kernel_size if pool.stride is None else pool.stride
    settings = {
        "kernel": (pool.kernel_size, 1),
        "stride": (stride, 1),
        "padding": (pool.padding, 0),
    }
    how = {key: _across(it, high) if flat else pair(it) for key, (it, high) in settings.items()}
    if not flat:
        return capture.emit(operator, name, {"x": x}, **how, **more)
    x = capture.reshape(x, (*x.shape[:2], 1, *x.shape[2:]), name)
    y = capture.emit(operator, name, {"x": x}, **how, **more)
    return capture.reshape(y, (*y.shape[:2], *y.shape[3:]), name)


def _adaptive_pool(capture: Capture, pool: Any, name: str, x: Value) -> Value:
    """Pool to planes of a size that divides the input's."""
    sides = x.shape[2:]
    given = pool.output_size
    wanted = (given,) * len(sides) if isinstance(given, int) else tuple(given)
    wanted = tuple(side if it is None else it for it, side in zip(wanted, sides, strict=True))
    most = isinstance(pool, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d)
    if most and pool.return_indices:
        raise _refuse(pool, "indices", "none")
    if all(it == 1 for it in wanted) and not most:
        y = capture.emit("global_average_pool", name, {"x": x})
        return capture.reshape(y, (*x.shape[:2], *wanted), name)
    if any(side % it for it, side in zip(wanted, sides, strict=True)):
        raise not_allowed(f"output_size of {name}", given, f"what divides {sides}")
    flat = (1,) * (2 - len(sides))
    kernel = (*flat, *(side // it for it, side in zip(wanted, sides, strict=True)))
    how = {
        "kernel": kernel,
        "stride": kernel,
        "padding": (0, 0),
        **({"ceil": False} if most else {}),
    }
    planes = capture.reshape(x, (*x.shape[:2], *flat, *sides), name)
    y = capture.emit("max_pool2d" if most else "average_pool2d", name, {"x": planes}, **how)
    return capture.reshape(y, (*x.shape[:2], *wanted), name)


def _upsample(capture: Capture, module: nn.Upsample, name: str, x: Value) -> Value:
    sides, size, by = x.shape[2:], module.size, module.scale_factor
    if module.mode != "nearest" or len(sides) != 2:
        raise _refuse(module, f"mode = {module.mode!r} of {x.shape}", "nearest, of planes")
    wanted = (
        pair(size)
        if size is not None
        else tuple(int(side * it) for side, it in zip(sides, _factors(by), strict=True))
    )
    if any(new % side or new == 0 for new, side in zip(wanted, sides, strict=True)):
        raise _refuse(module, f"the size {wanted}", f"multiples of {sides}")
    factors = tuple(new // side for new, side in zip(wanted, sides, strict=True))
    return capture.emit("upsample_nearest", name, {"x": x}, factors=factors)


def _factors(value: Any) -> tuple[float, float]:
    return (float(value),) * 2 if isinstance(value, int | float) else (value[0], value[1])


def _softmax(capture: Capture, module: nn.Softmax, name: str, x: Value) -> Value:
    if module.dim is None or module.dim % len(x.shape) != len(x.shape) - 1:
        raise _refuse(module, f"dim = {module.dim} of {x.shape}", "the last one")
    return capture.emit("softmax", name, {"x": x})


def _leaky_relu(capture: Capture, module: nn.LeakyReLU, name: str, x: Value) -> Value:
    return capture.emit("leaky_relu", name, {"x": x}, slope=float(module.negative_slope))


def _elu(capture: Capture, module: nn.ELU, name: str, x: Value) -> Value:
    return capture.emit("elu", name, {"x": x}, alpha=float(module.alpha))


def _relu_max_pool(capture: Capture, _: nn.Module, name: str, x: Value) -> Value:
    positive = capture.emit("relu", f"{name}:relu", {"x": x})
    how = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil": False}
    return capture.emit("max_pool2d", name, {"x": positive}, **how)


def flattened(shape: tuple[int, ...], start: int, end: int) -> tuple[int, ...]:
    """Return a shape with the axes from start to end, both included, as one."""
    start, end = start % len(shape), end % len(shape)
    middle = 1
    for length in shape[start : end + 1]:
        middle *= length
    return (*shape[:start], middle, *shape[end + 1 :])


def _flatten(capture: Capture, module: nn.Flatten, name: str, x: Value) -> Value:
    return capture.reshape(x, flattened(x.shape, module.start_dim, module.end_dim), name)


def _embedding(capture: Capture, module: nn.Embedding, name: str, indices: Value) -> Value:
    if module.max_norm is not None or module.scale_grad_by_freq or module.padding_idx is not None:
        raise _refuse(module, "max_norm, padding_idx or scaled gradients", "none of them")
    table = _held(capture, module, name, "weight")
    return capture.emit("embedding", name, {"indices": indices, "table": table})


def _dropout(capture: Capture, module: nn.Dropout, name: str, x: Value) -> Value:
    return dropped(capture, module.p, name, x) if capture.training else x


def _attention(capture: Capture, module: Attention, name: str, x: Value) -> Value:
    packed = product(capture, module.project_in, f"{name}.project_in", x)
    q, k, v = capture.emit_all("split", f"{name}:split", {"x": packed})
    how = {"heads": module.heads, "causal": module.causal}
    y = capture.emit("attention", name, {"q": q, "k": k, "v": v}, **how)
    return product(capture, module.project_out, f"{name}.project_out", y)


def product(capture: Capture, module: nn.Module, name: str, x: Value) -> Value:
    """Return what a module inside another one makes."""
    return MODULES[type(module)](capture, module, name, x)


#: Class of a module -> ``rule(capture, module, name, *values)``. A subclass may compute something
#: else, and has no rule.
MODULES: Mapping[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, dense.Conv2d, SparseConv1d, SparseConv2d), _convolution),
    **dict.fromkeys((nn.Linear, NonDynamicallyQuantizableLinear, SparseLinear), _linear),
    **dict.fromkeys((nn.GroupNorm, norms.GroupNorm), _group_norm),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, norms.BatchNorm2d), _batch_norm),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d), _max_pool),
    nn.LayerNorm: _layer_norm,
    nn.ReLU: _activation("relu"),
    nn.ReLU6: _activation("relu6"),
    nn.SiLU: _activation("silu"),
    nn.GELU: _activation("gelu"),
    nn.Hardswish: _activation("hard_swish"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.Hardsigmoid: _activation("hard_sigmoid"),
    nn.Tanh: _activation("tanh"),
    nn.LeakyReLU: _leaky_relu,
    nn.ELU: _elu,
    nn.Softmax: _softmax,
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d), _average_pool),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), _adaptive_pool),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), _adaptive_pool),
    nn.Upsample: _upsample,
    **dict.fromkeys((nn.LSTM, nn.GRU), recurrent),
    dense.ReLUMaxPool2d: _relu_max_pool,
    nn.Flatten: _flatten,
    nn.Identity: lambda capture, module, name, x: x,
    nn.Embedding: _embedding,
    nn.Dropout: _dropout,
    Attention: _attention,
}
