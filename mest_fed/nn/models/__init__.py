"""Models by name or by reference, with weights that follow from a seed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mest_fed.nn.eligible import Selection
from mest_fed.nn.models.architecture import Architecture, Sparsity
from mest_fed.nn.models.cnn import CNN2
from mest_fed.nn.models.resnet import ResNet
from mest_fed.nn.models.weights import Weights

__all__ = ["CNN2", "Architecture", "ResNet", "Sparsity", "Weights", "build_model", "build_shell"]


def build_model(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    generator: torch.Generator,
    width: float | None = None,
    norm: str | None = None,
    options: Mapping[str, Any] | None = None,
    sparsity: Sparsity | None = None,
    weights: Weights | None = None,
) -> nn.Module:
    """Build a model with weights that follow from ``generator``.

    Parameters
    ----------
    name, input_shape, num_classes, width, norm, options
        As for :class:`Architecture`.
    generator : torch.Generator
        Source of the weights of a model that says how they are drawn, as all of ours do; see
        :mod:`mest_fed.nn.models.initial`. The constructor of any other model finds global
        generators that start from its initial seed.
    sparsity : Sparsity, optional
        Gives what ``sparsify`` would make of the dense model. One dense layer of one of our models
        is in memory at a time; a user's model is first built whole.
    weights : Weights, optional
        Of a trained model, which replace those drawn.

    Raises
    ------
    InputError
        If something is not allowed, the builder fails, or no layer of the model can be sparse.
    """
    architecture = Architecture(name, input_shape, num_classes, width, norm, options)
    return architecture.model(generator, sparsity, weights)


def build_shell(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float | None = None,
    norm: str | None = None,
    options: Mapping[str, Any] | None = None,
    scheme: str | None = None,
    distribution: str = "uniform",
    selection: Selection | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a model without weights, for :func:`mest_fed.nn.write_state` to fill.

    Its sparse layers have no active weights; dense parameters hold arbitrary numbers. Other tensors
    of a user's model are as its constructor makes them. Parameters and errors as for
    :func:`build_model`; ``scheme`` is None for a dense model, and ``seed`` is the initial seed of
    the generator. The densities in ``distribution`` are not used, but their names are checked.
    """
    sparsity = None if scheme is None else Sparsity(scheme, 1.0, distribution, selection)
    return Architecture(name, input_shape, num_classes, width, norm, options).shell(sparsity, seed)
