"""Models by name or by reference, with weights that follow from a seed."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from mest_fed.catalogue import MODELS, NORMS
from mest_fed.errors import InputError, not_allowed
from mest_fed.nn.convert import Sparsifier
from mest_fed.nn.eligible import Selection, sparsifiable
from mest_fed.nn.models.cnn import CNN2
from mest_fed.nn.models.initial import (
    NORMS_OF_TORCH,
    Draw,
    initialise,
    is_as_constructed,
)
from mest_fed.nn.models.resnet import ResNet
from mest_fed.nn.models.weights import Weights
from mest_fed.rng import seeded_globals

__all__ = ["CNN2", "Architecture", "ResNet", "Sparsity", "Weights", "build_model", "build_shell"]


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
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    width: float | None = None
    norm: str | None = None
    options: Mapping[str, Any] | None = None
    num_tokens: int | None = None
    target_shape: tuple[int, ...] = ()

    def model(
        self,
        generator: torch.Generator,
        sparsity: Sparsity | None = None,
        weights: Weights | None = None,
    ) -> nn.Module:
        """Build the model; parameters and errors as for :func:`build_model`."""
        model = self._constructed(generator.initial_seed())
        normalised = _is_normalised(model)
        sparsifier = None
        if sparsity is not None:
            sparsifier = self._sparsifier(model, sparsity)
            sparsifier.count(sparsity.density, sparsity.distribution)
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
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.device.type != "cpu":
                raise InputError(
                    f"model.name = {self.name!r}: {name} is on device {tensor.device}; allowed: cpu"
                )
        return model

    def try_out(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Compute the output for an input of zeros.

        Parameters
        ----------
        model : nn.Module
            Such as its shell.
        dtype : torch.dtype
            Of the inputs.

        Raises
        ------
        InputError
            If it cannot, or gives something else than a tensor with a row for each example.
        """
        shape = (2, *self.input_shape)
        outputs: list[Any] = []

        def compute() -> nn.Module:
            outputs.append(model(torch.zeros(shape, dtype=dtype)))
            return model

        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad(), seeded_globals(0):
                MODELS.call(self.name, compute)
        except (RuntimeError, ValueError) as error:  # of ours; a user's own raises InputError
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"model.name = {self.name!r} does not take inputs of shape {self.input_shape} and "
                f"{dtype}, which data.name gives: {reason}"
            ) from error
        finally:
            for module, mode in modes.items():
                module.training = mode
        (output,) = outputs
        ours = f"model.name = {self.name!r} gives, for inputs of shape {shape},"
        if not isinstance(output, torch.Tensor):
            raise InputError(f"{ours} a {type(output).__name__}; allowed: a tensor")
        if output.shape[:1] != (2,) or not output.is_floating_point():
            raise InputError(
                f"{ours} a tensor of {output.dtype} and shape {tuple(output.shape)}; allowed: "
                "floating-point numbers, the first dimension that of the inputs"
            )

    def _call(self, builder: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
        """Return the builder with its arguments.

        Raises
        ------
        InputError
            If the builder has no parameter for an option, ``width`` or ``norm``.
        """
        parameters = _parameters(builder)
        by_name = {it.name for it in parameters if it.kind in _BY_NAME}
        data = {"input_shape": self.input_shape, "num_classes": self.num_classes}
        kinds = {it.kind for it in parameters}
        takes_all = inspect.Parameter.VAR_KEYWORD in kinds
        keywords = dict(self.options or {})
        unknown = [] if takes_all else keywords.keys() - by_name
        for name in sorted(unknown):
            allowed = ", ".join(sorted(by_name - _GIVEN.keys() - data.keys())) or "none"
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
