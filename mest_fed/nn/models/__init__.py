"""The models by name, initialised from an explicit generator."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from mest_fed.catalogue import MODELS, NORMS
from mest_fed.errors import not_allowed
from mest_fed.nn.convert import Sparsifier
from mest_fed.nn.eligible import Selection
from mest_fed.nn.models.cnn import CNN2
from mest_fed.nn.models.initial import as_mest, glorot_uniform, initialise
from mest_fed.nn.models.resnet import ResNet

__all__ = ["CNN2", "ResNet", "Sparsity", "build_model", "build_shell"]


@dataclass(frozen=True)
class Sparsity:
    """What of a model is sparse from the start; see :func:`mest_fed.nn.sparsify`.

    Densities of single layers may follow the name of the distribution; see
    :func:`mest_fed.sparsity.parse_distribution`.
    """

    scheme: str = "block"
    density: float = 0.1
    distribution: str = "uniform"
    selection: Selection | None = None


def build_model(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    generator: torch.Generator,
    width: float = 1.0,
    norm: str = "batch",
    sparsity: Sparsity | None = None,
) -> nn.Module:
    """Build a model with weights drawn from ``generator``.

    Parameters
    ----------
    name : str
        A name of :data:`~mest_fed.catalogue.MODELS`, or a reference to a user's own.
    input_shape : tuple of int
        (channels, height, width) of an image.
    num_classes : int
        Outputs.
    generator : torch.Generator
        Source of the initial weights.
    width : float
        Factor on the channel counts.
    norm : str
        A name of :data:`~mest_fed.catalogue.NORMS`.
    sparsity : Sparsity, optional
        Gives what ``sparsify`` would make of the dense model, with one dense layer in memory at a
        time.

    Raises
    ------
    InputError
        If the name, width, norm or sparsity is not allowed.
    """
    seed = generator.initial_seed()
    model = _structure(name, input_shape, num_classes, width=width, norm=norm, seed=seed)
    sparsifier = None
    if sparsity is not None:
        sparsifier = Sparsifier(model, sparsity.scheme, sparsity.selection)
        sparsifier.count(sparsity.density, sparsity.distribution)
    normalised = getattr(model, "normalised", True)
    draw = as_mest if normalised else glorot_uniform
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for layer in [name for name, _ in model.named_modules()]:
        module = model.get_submodule(layer)
        _materialise(module)
        initialise(module, module in linear[-1:], draw, generator)
        if sparsifier is not None:
            for part in sparsifier.of(layer):
                sparsifier.convert(part, keep_norm=not normalised)
    return model


def build_shell(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 1.0,
    norm: str = "batch",
    scheme: str | None = None,
    distribution: str = "uniform",
    selection: Selection | None = None,
) -> nn.Module:
    """Build a model without weights, for :func:`mest_fed.nn.write_state` to fill.

    Its sparse layers have no active weights; dense parameters hold arbitrary numbers. Parameters
    and errors as for :func:`build_model`; ``scheme`` is None for a dense model. The densities in
    ``distribution`` are not used, but their names are checked.
    """
    model = _structure(name, input_shape, num_classes, width=width, norm=norm)
    if scheme is not None:
        sparsifier = Sparsifier(model, scheme, selection)
        sparsifier.check_names(distribution)
        for layer in sparsifier.layouts:
            sparsifier.empty(layer)
    for module in model.modules():
        _materialise(module)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.reset_parameters()
    return model


def _structure(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float,
    norm: str,
    seed: int = 0,
) -> nn.Module:
    """Build a model before :func:`initialise` draws the layers that it knows.

    One of ours is built on the meta device: nothing is drawn, and nothing takes memory. A user's
    own may have parameters and buffers of any kind, which its constructor makes, from a seed.
    """
    NORMS.find(norm)
    if not 0 < width <= 16:
        raise not_allowed("width", width, "a number in (0, 16]")
    with ExitStack() as stack:
        if MODELS.is_builtin(name):
            stack.enter_context(torch.device("meta"))
        else:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(seed)
        model: nn.Module = MODELS.build(name, input_shape, num_classes, width=width, norm=norm)
    return model


def _materialise(module: nn.Module) -> None:
    """Give a module on the meta device memory on the CPU, its children not.

    Not ``Module.to_empty``: its ``empty_like`` of meta tensors imports torch's decompositions in
    Python and with them sympy, 36 MB that a small device would carry ever after.
    """
    for name, parameter in module.named_parameters(recurse=False):
        if not parameter.is_meta:
            continue
        real = torch.empty(parameter.shape, dtype=parameter.dtype)
        setattr(module, name, nn.Parameter(real, parameter.requires_grad))
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_meta:
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
