"""Which implementations a model's sparse layers run, layer by layer: by rule, or timed once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from mest_fed.kernels import ConvGeometry, native
from mest_fed.kernels.choice import Case, Choices, rule
from mest_fed.kernels.table import Row
from mest_fed.kernels.tuning import Benchmark, LayerCase, Timing, time_in_turn, tune_layer
from mest_fed.nn.layers import SparseLayer
from mest_fed.nn.products import ProductLayer, SparseConv1d, SparseConv2d
from mest_fed.rng import torch_generator


def tune(
    model: nn.Module,
    input_shape: Sequence[int],
    batch: int,
    known: Mapping[Case, Row] | None = None,
    benchmark: Benchmark = time_in_turn,
    *,
    input_dtype: torch.dtype = torch.float32,
) -> list[Row]:
    """Time the implementations of a model's sparse layers, once for each distinct case.

    The model stays as it is, and nothing is drawn from the global generator.

    Parameters
    ----------
    model : nn.Module
        Any model with sparse layers.
    input_shape : sequence of int
        Shape of one example, such as (channels, height, width).
    batch : int
        Examples in the batch that is timed.
    known : mapping of Case to Row, optional
        Rows of cases that need no timing.
    benchmark : callable
        What times; see :func:`mest_fed.kernels.tuning.time_in_turn`.
    input_dtype : torch.dtype
        Of the inputs, such as int64 for tokens.

    Returns
    -------
    list of Row
        One for each case of the model. Empty where there is nothing to choose: without the
        compiled kernels, or on a GPU.
    """
    if native.variant() is None:
        return []

    def decide(layer_case: LayerCase) -> Timing:
        generator = torch_generator(0, "tuning", *layer_case.size)
        return tune_layer(layer_case, generator, benchmark)

    return decide_layers(model, input_shape, batch, decide, known, input_dtype=input_dtype)


def set_choices(model: nn.Module, choices: Choices | None) -> None:
    """Have a model's sparse layers run these implementations from now on; None: the rule's.

    Layers keep them in copies of the model, and not in its ``state_dict``.
    """
    for module in model.modules():
        if isinstance(module, SparseLayer):
            module.choices = choices


def by_rule(layer_case: LayerCase) -> Timing:
    """Decide as the rule does, without timing."""
    return Timing(rule(layer_case.weight))


def decide_layers(
    model: nn.Module,
    input_shape: Sequence[int],
    batch: int,
    decide: Callable[[LayerCase], Timing],
    known: Mapping[Case, Row] | None = None,
    *,
    input_dtype: torch.dtype = torch.float32,
) -> list[Row]:
    """Decide each distinct case of a model's sparse layers; see :func:`tune`."""
    before, rows = known or {}, dict[Case, Row]()
    for name, layer_case in _layer_cases(
        model, torch.zeros(1, *input_shape, dtype=input_dtype), batch
    ):
        case = layer_case.case
        row = rows.get(case) or before.get(case)
        if row is None:
            timing = decide(layer_case)
            row = Row((), case, timing.choice, timing.milliseconds)
        layers = tuple(dict.fromkeys((*row.layers, name)))
        rows[case] = replace(row, layers=layers)
    return list(rows.values())


def _layer_cases(model: nn.Module, example: Tensor, batch: int) -> Iterator[tuple[str, LayerCase]]:
    """Yield the sparse layers that have a choice, once for each size of input that they see."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, ProductLayer)}
    if not all(_has_a_choice(layer) for layer in layers.values()):
        return
    for name, (_, *rest) in _input_sizes(model, layers, example):
        layer = layers[name]
        geometry = getattr(layer, "geometry", ConvGeometry())
        each = 1
        if isinstance(layer, SparseConv1d):
            channels, length = rest
            rest = [channels, 1, length]
        elif not isinstance(layer, SparseConv2d):
            # A linear layer takes all leading dimensions as one.
            *leading, last = rest
            each, rest = torch.Size(leading).numel(), [last]
        # Timing keeps no dense gradient, whatever the layer does.
        weight = replace(layer.product_weight(), on_dense_gradient=None)
        yield (
            name,
            LayerCase(weight, layer.values.detach(), geometry, (batch * each, *rest)),
        )


def _has_a_choice(layer: ProductLayer) -> bool:
    return layer.values.device.type == "cpu" and layer.values.dtype == torch.float32


def _input_sizes(
    model: nn.Module, layers: dict[str, ProductLayer], example: Tensor
) -> list[tuple[str, tuple[int, ...]]]:
    """Return the layers' input sizes for one example, in the order in which they run."""
    seen: dict[tuple[str, tuple[int, ...]], None] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name, tuple(inputs[0].shape)] = None

    with _left_as_it_is(model, layers), ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(partial(note, name)).remove)
        if layers:
            model(example)
    return list(seen)


@contextmanager
def _left_as_it_is(model: nn.Module, layers: dict[str, ProductLayer]) -> Iterator[None]:
    """Let a model run without gradients, and restore its statistics and generators."""
    modes = {module: module.training for module in model.modules()}
    choices = {layer: layer.choice for layer in layers.values()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for layer, choice in choices.items():
            layer.choice = choice
