"""What a run trains: its model, sparse as the method wants it, with its memory and its work."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mest_fed.catalogue import MODELS, MutationPlace
from mest_fed.config import RunConfig, read_options
from mest_fed.data import DataSplit
from mest_fed.devices import StepWork, Work, batch_work, forward_flops, round_work, torch_step_work
from mest_fed.kernels.choice import Choices
from mest_fed.memory import MemoryOptions, ModelTrace, TrainingLoss, trace_model
from mest_fed.memory.activations import segments_of
from mest_fed.nn import (
    LayerDensity,
    Selection,
    SparseLayer,
    Sparsity,
    UnsentBuffers,
    layer_densities,
    model_spec,
    write_state,
)
from mest_fed.nn.models import Architecture, Weights
from mest_fed.nn.tuning import set_choices
from mest_fed.rng import torch_generator
from mest_fed.sparsity import Method, build_method
from mest_fed.sparsity.arrays import Slots
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.task_data import Examples, TaskData
from mest_fed.training.programs import Programs


class TaskModel(TaskData):
    """Model and sparse-training method of one configuration, beside its data.

    Parameters
    ----------
    config, data, partitions, choices
        As for :class:`~mest_fed.task.Task`.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        data: DataSplit | None = None,
        partitions: Sequence[Examples] | None = None,
        choices: Choices | None = None,
    ) -> None:
        super().__init__(config, data=data, partitions=partitions)
        self.choices = choices

    @property
    def density(self) -> float:
        """Target density of the sparse layers: 1 for the dense method, which has none."""
        sparsity = self.config.sparsity
        return sparsity.density if self.method.sparse else 1.0

    @property
    def has_tiers(self) -> bool:
        """Whether a device may have less of the model than another: less density, or width."""
        return bool(self.spec.groups) or self.method.cuts_width

    @property
    def divided(self) -> str:
        """What a plan's density is a share of, for people."""
        return "channels" if self.method.cuts_width else "sparse weights"

    @property
    def scheme(self) -> str | None:
        """Scheme of the sparse layers; None for the dense method, which has none."""
        return self.config.sparsity.scheme if self.method.sparse else None

    @property
    def width(self) -> float:
        """Share of the run's channels that this task's model has."""
        return 1.0

    @cached_property
    def method(self) -> Method:
        """The sparse-training method."""
        sparsity = self.config.sparsity
        return build_method(
            sparsity.method,
            sparsity.density,
            sparsity.gradient_weight,
            gradients=sparsity.mutation == MutationPlace.CLIENT,
        )

    @cached_property
    def architecture(self) -> Architecture:
        """Which model is trained, for the data's shapes."""
        example, model = self.example, self.config.model
        shapes = self.objective.output_shapes
        allowed = self._answer_of(
            lambda: [tuple(it) for it in shapes(example.target_shape, example.num_outputs)]
        )
        return Architecture(
            model.name,
            example.input_shape,
            example.num_outputs,
            width=self._given("width"),
            norm=self._given("norm"),
            options=read_options(model.options),
            num_tokens=example.num_tokens,
            target_shape=example.target_shape,
            output_shapes=allowed,
        )

    def _given(self, key: str) -> Any:
        """Return a key of the model; None where it is at its default and the model has no such."""
        value = getattr(self.config.model, key)
        at_default = value == type(self.config.model).model_fields[key].default
        return None if at_default and not MODELS.takes(self.config.model.name, key) else value

    def build_model(self, masks: Mapping[str, Slots] | None = None) -> nn.Module:
        """Build the model of this seed at the target density (dense for the dense method).

        The largest weights of each sparse layer are active, or those of ``masks`` by groups.
        """
        source = self.config.model.weights
        weights = Weights.read(Path(source)) if source else None
        built = self.architecture.model(self._model_generator(), self._sparsity, weights, masks)
        set_choices(built, self.choices)
        return built

    def _model_generator(self) -> torch.Generator:
        return torch_generator(self.config.run.seed, "model")

    @cached_property
    def model(self) -> nn.Module:
        """The process's resident model, a shell: its user loads a state into it first."""
        model = self.architecture.shell(self._sparsity, self._model_generator().initial_seed())
        self._unsent = UnsentBuffers(model)
        return model

    @cached_property
    def programs(self) -> Programs:
        """The compiled programs of the resident model."""
        return Programs(self.model)

    def load(self, state: SparseState) -> None:
        """Have the resident model be in a state, and otherwise as it was built.

        Raises
        ------
        InputError
            As :func:`~mest_fed.nn.write_state`.
        """
        write_state(self.model, state)
        self._unsent.restore()

    @property
    def _sparsity(self) -> Sparsity | None:
        """What of the model is sparse from the start; None for the dense method."""
        given = self.config.sparsity
        if not self.method.sparse:
            return None
        return Sparsity(given.scheme, given.density, given.densities, self._selection)

    @property
    def _selection(self) -> Selection:
        """Which layers the configuration wants sparse."""
        sparsity = self.config.sparsity
        return Selection((), sparsity.included, sparsity.excluded, section="sparsity.")

    @property
    def layers(self) -> list[LayerDensity]:
        """Which layers of the model are sparse, and why the others are dense."""
        if not self.method.sparse:
            return layer_densities(self.model)
        chosen = self._selection
        return layer_densities(self.model, include=chosen.include, exclude=chosen.exclude)

    @cached_property
    def spec(self) -> ModelSpec:
        """What the model's arrays mean."""
        return replace(model_spec(self.model), width=self.width)

    def untrained(self, frozen: int) -> frozenset[str]:
        """Return which tensors of a state a device does not train that freezes so many segments.

        Sparse layers by their names, as in a state's values, and dense tensors by theirs; batch
        statistics, which forward passes move, are none of them.
        """
        if frozen not in self._untrained:
            segments = segments_of(self.model, self.config.memory.segments)[:frozen]
            held = {id(parameter) for it in segments for parameter in it.parameters()}
            names = {
                name
                for name, parameter in self.model.named_parameters(remove_duplicate=False)
                if id(parameter) in held
            }
            layers = {f"{layer}.values".lstrip("."): layer for layer in self.spec.layouts}
            self._untrained[frozen] = frozenset(layers.get(name, name) for name in names)
        return self._untrained[frozen]

    @cached_property
    def trace(self) -> ModelTrace:
        """The model's memory needs."""
        example = self.example
        self.architecture.try_out(self.model, example.zeros(2))
        loss = TrainingLoss(self.objective.total_loss, example.target_shape, example.target_dtype)
        traced = trace_model(self.model, example.input_shape, example.input_dtype, loss)
        return self._with_widths(traced)

    def _with_widths(self, traced: ModelTrace) -> ModelTrace:
        """Return a trace that knows those of narrower models; itself where there are none."""
        return traced

    def torch_work(self, memory: MemoryOptions | None = None) -> StepWork:
        """Return what a step by torch takes of the resident model, as it is.

        Counting runs an image through the model, so it is done once for a number of active weights.
        """
        key = memory, self._active_weights
        if key not in self._steps:
            example = self.example
            self._steps[key] = torch_step_work(
                self.model, example.input_shape, memory, example.input_dtype
            )
        return self._steps[key]

    def forward_work(self, examples: int) -> Work:
        """Return the operations of the resident model's answers to so many examples."""
        key, example = self._active_weights, self.example
        if key not in self._forwards:
            self._forwards[key] = forward_flops(
                self.model, example.input_shape, example.input_dtype
            )
        return self._forwards[key] * examples

    def batch_work(self, presented: int) -> Work:
        """Return what it takes to make batches of so many examples."""
        example = self.example
        return batch_work(prod(example.input_shape) * example.input_dtype.itemsize * presented)

    def round_work(self, presented: int) -> Work:
        """Return what a round takes beside its steps, in which so many examples are presented."""
        return round_work(self.spec.tensors) + self.batch_work(presented)

    @property
    def _active_weights(self) -> tuple[int, ...]:
        """Active weights of each sparse layer: work depends on no more of them."""
        layers = (module for module in self.model.modules() if isinstance(module, SparseLayer))
        return tuple(layer.layout.active_weights(layer.slots) for layer in layers)

    @cached_property
    def _untrained(self) -> dict[int, frozenset[str]]:
        """What was found of frozen segments, by their number."""
        return {}

    @cached_property
    def _steps(self) -> dict[tuple[MemoryOptions | None, tuple[int, ...]], StepWork]:
        """What was counted of steps, by memory options and active weights."""
        return {}

    @cached_property
    def _forwards(self) -> dict[tuple[int, ...], Work]:
        """What was counted of answers, by active weights."""
        return {}
