"""A model by name or by reference: called with what the data say, checked, made sparse.

What a trial of it with a few inputs refuses is in :mod:`mest_fed.nn.models.trial`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mest_fed.catalogue import MODELS, NORMS
from mest_fed.errors import InputError, not_allowed
from mest_fed.nn.convert import Sparsifier
from mest_fed.nn.eligible import Selection, sparsifiable
from mest_fed.nn.models.initial import (
    NORMS_OF_TORCH,
    Draw,
    initialise,
    is_as_constructed,
)
from mest_fed.nn.models.trial import try_out
from mest_fed.nn.models.weights import Weights
from mest_fed.rng import seeded_globals
from mest_fed.sparsity.arrays import Slots


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


@dataclass(frozen=True)
class Architecture:
    """Which model is built, for which data.

    Its builder is called as ``build(input_shape, num_classes, **options)``. It may have fewer
    parameters: ``input_shape`` and ``num_classes`` are given by name, or else to the first
    parameters without a default, and ``width``, ``norm``, ``num_tokens`` and ``target_shape`` to a
    builder that has parameters of these names.

    Parameters
    ----------
    name : str
        A name of :data:`~mest_fed.catalogue.MODELS`, or a reference to a builder or a class:
        ``package.module:attribute`` or ``file.py:attribute``.
    input_shape : tuple of int
        Of one example, such as (channels, height, width), (channels, length) or (length,).
    num_classes : int
        Outputs.
    width : float, optional
        Factor on the channel counts.
    norm : str, optional
        A name of :data:`~mest_fed.catalogue.NORMS`.
    options : mapping, optional
        Further arguments of the builder.
    num_tokens : int, optional
        Size of the vocabulary where inputs are tokens.
    target_shape : tuple of int
        Of one target: () for a class, (length,) for a token at each position.
    output_shapes : sequence of tuple of int
        Shapes that the output for one example may have; none for any.
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    width: float | None = None
    norm: str | None = None
    options: Mapping[str, Any] | None = None
    num_tokens: int | None = None
    target_shape: tuple[int, ...] = ()
    output_shapes: Sequence[tuple[int, ...]] = ()

    def model(
        self,
        generator: torch.Generator,
        sparsity: Sparsity | None = None,
        weights: Weights | None = None,
        masks: Mapping[str, Slots] | None = None,
    ) -> nn.Module:
        """Build the model; parameters and errors as for :func:`build_model`.

        ``masks`` are those of sparse layers, by their groups, in the place of the largest weights.
        """
        model = self._constructed(generator.initial_seed())
        normalised = _is_normalised(model)
        sparsifier = None
        if sparsity is not None:
            sparsifier = self._sparsifier(model, sparsity)
            sparsifier.count(sparsity.density, sparsity.distribution)
            sparsifier.choose(masks or {})
        if weights is not None:
            weights.check(model)
        draw: Draw | None = getattr(model, "initial", None)
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        for layer in [name for name, _ in model.named_modules()]:
            module = model.get_submodule(layer)
            drawn = _materialise(module) or is_as_constructed(module)
            if drawn and draw is not None:
                initialise(module, module in linear[-1:], draw, generator)
            if weights is not None:
                weights.load(layer, module)
            if sparsifier is not None:
                for part in sparsifier.of(layer):
                    sparsifier.convert(part, keep_norm=not normalised and weights is None)
        return model

    def shell(self, sparsity: Sparsity | None = None, seed: int = 0) -> nn.Module:
        """Build the model without weights; parameters and errors as for :func:`build_shell`.

        The density in ``sparsity`` is not used.
        """
        model = self._constructed(seed)
        if sparsity is not None:
            sparsifier = self._sparsifier(model, sparsity)
            sparsifier.check_names(sparsity.distribution)
            for layer in sparsifier.layouts:
                sparsifier.empty(layer)
        for module in model.modules():
            if _materialise(module) and isinstance(module, NORMS_OF_TORCH):
                module.reset_parameters()
        return model

    def _constructed(self, seed: int) -> nn.Module:
        """Build the model as its constructor leaves it.

        One of ours is built on the meta device: nothing is drawn, and nothing takes memory. A
        user's own may have parameters, buffers and other tensors of any kind. So it is built on the
        CPU, with global generators that start from the seed.
        """
        if self.norm is not None:
            NORMS.find(self.norm)
        if self.width is not None and not 0 < self.width <= 16:
            raise not_allowed("model.width", self.width, "a number in (0, 16]")
        call = self._call(MODELS.find(self.name))
        model: nn.Module
        if MODELS.is_builtin(self.name):
            with torch.device("meta"):
                model = MODELS.call(self.name, call)
            return model
        with seeded_globals(seed):
            model = MODELS.call(self.name, call)
        self._check_weights(model)
        return model

    def _check_weights(self, model: nn.Module) -> None:
        """Refuse a model whose weights cannot be trained here."""
        key, parameters = f"model.name = {self.name!r}", dict(model.named_parameters())
        if not parameters:
            raise InputError(f"{key} has no parameters; allowed: a model with weights to train")
        for name, tensor in (*parameters.items(), *model.named_buffers()):
            if is_lazy(tensor):
                raise InputError(
                    f"{key}: {name} has no shape yet, as its layer is lazy; allowed: weights with "
                    "shapes, which a lazy layer has once the builder has called the model"
                )
            if tensor.device.type != "cpu":
                raise InputError(f"{key}: {name} is on device {tensor.device}; allowed: cpu")
            if name in parameters and tensor.dtype != torch.float32:
                raise InputError(f"{key}: {name} is of {tensor.dtype}; allowed: torch.float32")

    def try_out(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Compute the outputs for a few inputs; see :func:`mest_fed.nn.models.trial.try_out`."""
        return try_out(model, inputs, f"model.name = {self.name!r}", self.output_shapes)

    def _call(self, builder: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
        """Return the builder with its arguments.

        Raises
        ------
        InputError
            If the builder has no parameter for an option, ``width`` or ``norm``, or one has no
            value.
        """
        parameters = _parameters(builder)
        by_name = {it.name for it in parameters if it.kind in _BY_NAME}
        data = {"input_shape": self.input_shape, "num_classes": self.num_classes}
        kinds = {it.kind for it in parameters}
        takes_all = inspect.Parameter.VAR_KEYWORD in kinds
        keywords = dict(self.options or {})
        unknown = [] if takes_all else keywords.keys() - by_name
        for name in sorted(unknown):
            by_place = [it.name for it in parameters if _is_needed(it, data)]
            ours = {*_GIVEN, *data, *by_place[: len(data.keys() - by_name)]}
            allowed = ", ".join(sorted(by_name - ours)) or "none"
            raise InputError(
                f"model.options.{name} is no option of model.name = {self.name!r}; "
                f"allowed: {allowed}"
            )
        for name, required in _GIVEN.items():
            value = getattr(self, name)
            if value is not None and (name in by_name or (required and takes_all)):
                keywords.setdefault(name, value)
            elif required and value is not None:
                raise InputError(
                    f"model.{name} = {value!r} is not allowed: model.name = {self.name!r} has no "
                    f"such option"
                )
        keywords = {it: value for it, value in data.items() if it in by_name} | keywords
        rest = [value for it, value in data.items() if it not in by_name]
        if inspect.Parameter.VAR_POSITIONAL in kinds:
            return partial(builder, *rest, **keywords)
        needed = [it for it in parameters if _is_needed(it, keywords)]
        given = list(zip(needed, rest, strict=False))
        by_keyword = [it for it in parameters if it.kind is it.KEYWORD_ONLY]
        for it in (*needed[len(rest) :], *by_keyword):
            if it.default is it.empty and it.name not in keywords:
                raise InputError(
                    f"model.options.{it.name} is missing, and model.name = {self.name!r} has no "
                    f"default for it; allowed: a value"
                )
        args = [value for it, value in given if it.kind is it.POSITIONAL_ONLY]
        keywords |= {it.name: value for it, value in given if it.kind is not it.POSITIONAL_ONLY}
        return partial(builder, *args, **keywords)

    def _sparsifier(self, model: nn.Module, sparsity: Sparsity) -> Sparsifier:
        try:
            return Sparsifier(model, sparsity.scheme, sparsity.selection)
        except InputError as error:
            if sparsifiable(model):
                raise
            raise InputError(f"model.name = {self.name!r}: {error}") from error


#: What a builder gets beside the data's shapes if it has a parameter of the name -> whether one
#: that has none refuses a value.
_GIVEN = {"width": True, "norm": True, "num_tokens": False, "target_shape": False}
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _parameters(builder: Callable[..., nn.Module]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(builder).parameters.values())
    except ValueError:  # a function of C that does not say
        return []


def _is_needed(parameter: inspect.Parameter, keywords: Mapping[str, Any]) -> bool:
    """Whether a parameter, which may be given by its place, has no value yet."""
    no_default = parameter.default is parameter.empty
    return parameter.kind in _BY_PLACE and no_default and parameter.name not in keywords


def _is_normalised(model: nn.Module) -> bool:
    """Whether something corrects the size of a model's activations.

    A model may say so itself, by an attribute ``normalised``. A class of a user's own counts if it
    is called a norm.
    """
    own = getattr(model, "normalised", None)
    if own is not None:
        return bool(own)
    return any("norm" in type(module).__name__.lower() for module in model.modules())


def _materialise(module: nn.Module) -> bool:
    """Give a module on the meta device memory on the CPU, its children not; say whether it was.

    Not ``Module.to_empty``: its ``empty_like`` of meta tensors imports torch's decompositions in
    Python and with them sympy, 36 MB that a small device would carry ever after.
    """
    parameters = [it for it in module.named_parameters(recurse=False) if it[1].is_meta]
    for name, parameter in parameters:
        real = torch.empty(parameter.shape, dtype=parameter.dtype)
        setattr(module, name, nn.Parameter(real, parameter.requires_grad))
    buffers = [it for it in module.named_buffers(recurse=False) if it[1].is_meta]
    for name, buffer in buffers:
        setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return bool(parameters or buffers)
