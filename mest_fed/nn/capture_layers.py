"""Which operators compute a module: one rule for each class, of torch's and of ours."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mest_fed.errors import InputError, not_allowed
from mest_fed.kernels import Strips
from mest_fed.nn import dense, norms
from mest_fed.nn.capture_values import Capture, Value
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


def _sparse_weight(
    capture: Capture, layer: SparseLayer, name: str
) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the buffers of values and slots, and the attributes that say how they are cut."""
    storage = layer.layout.storage
    if not isinstance(storage, Strips):
        kind = type(layer.layout).__name__.lower()
        raise _refuse(layer, f"the scheme {kind}", "unstructured, block, block:ROWS")
    buffers = {
        "values": capture.held(layer.values, f"{name}.values"),
        "slots": capture.held(layer.slots, f"{name}.slots"),
    }
    return buffers, {"rows": storage.rows}


def _convolution(capture: Capture, layer: Any, name: str, x: Value) -> Value:
    flat = isinstance(layer, nn.Conv1d | SparseConv1d)
    _check_convolution(layer, name)
    padding = 0 if layer.padding == "valid" else layer.padding
    how: dict[str, Any] = {"stride": pair(layer.stride), "padding": pair(padding)}
    if flat:
        how = {"stride": _across(layer.stride, 1), "padding": _across(padding, 0)}
    inputs: dict[str, Value | int | None] = {}
    if flat:
        x = capture.reshape(x, (*x.shape[:2], 1, *x.shape[2:]), name)
    operator = "conv2d"
    if isinstance(layer, SparseLayer):
        weight, cut = _sparse_weight(capture, layer, name)
        shape = layer.layout.shape
        how |= {**cut, "weight_shape": (*shape[:2], 1, *shape[2:]) if flat else shape}
        operator, inputs = "sparse_conv2d", {"x": x, **weight}
    else:
        kernel = (1, *layer.kernel_size) if flat else layer.kernel_size
        shape = (layer.out_channels, layer.in_channels // layer.groups, *kernel)
        inputs = {"x": x, "w": capture.held(layer.weight, f"{name}.weight", shape)}
        how["groups"] = layer.groups
    inputs["b"] = _held(capture, layer, name, "bias")
    y = capture.emit(operator, name, inputs, **how)
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
    inputs: dict[str, Value | int | None] = {}
    inputs["x"] = capture.reshape(x, (rows, features), f"{name}:input")
    operator, how = "linear", {}
    if isinstance(layer, SparseLayer):
        weight, cut = _sparse_weight(capture, layer, name)
        operator, how = "sparse_linear", {**cut, "weight_shape": layer.layout.shape}
        inputs |= weight
    else:
        inputs["w"] = _held(capture, layer, name, "weight")
    inputs["b"] = _held(capture, layer, name, "bias")
    y = capture.emit(operator, name, inputs, **how)
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


def _average_pool(capture: Capture, pool: nn.AvgPool2d, name: str, x: Value) -> Value:
    padded = pool.padding not in (0, (0, 0)) and not pool.count_include_pad
    if pool.ceil_mode or padded or pool.divisor_override is not None:
        raise _refuse(pool, "a setting of its own", "kernel, stride and padding")
    return _pooled(capture, "average_pool2d", pool, name, x)


def _pooled(capture: Capture, operator: str, pool: Any, name: str, x: Value, **more: Any) -> Value:
    flat = isinstance(pool, nn.MaxPool1d)
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


def _adaptive_pool(capture: Capture, pool: nn.AdaptiveAvgPool2d, name: str, x: Value) -> Value:
    if pool.output_size not in (1, (1, 1)):
        raise not_allowed(f"output_size of {name}", pool.output_size, "1")
    y = capture.emit("global_average_pool", name, {"x": x})
    return capture.reshape(y, (*y.shape, 1, 1), name)


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


def dropped(capture: Capture, probability: float, name: str, x: Value) -> Value:
    """Return x with a dropout of its own seed; x itself where nothing is dropped."""
    if probability == 0:
        return x
    seed = capture.seed(name)
    return capture.emit("dropout", name, {"x": x, "seed": seed}, probability=float(probability))


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
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    dense.ReLUMaxPool2d: _relu_max_pool,
    nn.Flatten: _flatten,
    nn.Identity: lambda capture, module, name, x: x,
    nn.Embedding: _embedding,
    nn.Dropout: _dropout,
    Attention: _attention,
}
