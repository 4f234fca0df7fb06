"""The learning task of a run, as both the clients and the server build it from the configuration.

``Task(config)`` builds one. :mod:`mest_fed.process_tasks` has those of this process, so that data,
model and trace are shared by all clients that it plays.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mest_fed.catalogue import AUGMENTATIONS, MODELS, PARTITIONERS, MutationPlace
from mest_fed.config import DataSection, RunConfig, read_options
from mest_fed.config.stopping import StopRule
from mest_fed.data import (
    Batches,
    Columns,
    DataRequest,
    DataSplit,
    Encoding,
    ExampleSpec,
    find_source,
    hold_out,
    load_own,
    load_partitions,
    needs_classes,
    num_held_out,
    partition,
)
from mest_fed.devices import Assignment, Work, assign_devices, load_profile, training_work
from mest_fed.errors import BudgetError, InputError
from mest_fed.kernels.choice import Choices
from mest_fed.memory import (
    MemoryOptions,
    ModelTrace,
    Plan,
    PlanLimits,
    Planner,
    TrainingLoss,
    TrainingSetup,
    TrainingShape,
    trace_model,
)
from mest_fed.nn import (
    LayerDensity,
    ModelSpec,
    Selection,
    SparseLayer,
    Sparsity,
    layer_densities,
    model_spec,
)
from mest_fed.nn.models import Architecture, Weights
from mest_fed.nn.tuning import set_choices
from mest_fed.registry import described
from mest_fed.rng import numpy_generator, torch_generator
from mest_fed.sparsity import Interval, Method, build_method
from mest_fed.training import (
    EVALUATION_BATCH,
    ForgettingPolicy,
    Objective,
    OptimizerSettings,
    learning_rate,
    objective_of,
    try_objective,
)

#: Outputs of one forward pass of an evaluation: 64 MB of float32.
_MOST_OUTPUTS = 2**24
#: Examples on which a learning task is tried.
_TRIED = 32

Examples = npt.NDArray[np.int64]
T = TypeVar("T")


class _OnePartition(Sequence[Examples]):
    """The partitions of a device's own data: one, whatever its number is."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return 1

    def __getitem__(self, partition: Any) -> Any:
        return self._examples


class Task:
    """Data, model and schedules of one configuration.

    Parameters
    ----------
    config : RunConfig
        The run.
    data : DataSplit, optional
        Training and central test data; by default the configuration's data set, which is loaded
        when it is used.
    partitions : sequence of arrays, optional
        Training examples of each device; by default as the configuration shares them out.
    choices : Choices, optional
        Implementations of the model's sparse layers; by default those of the rule.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        data: DataSplit | None = None,
        partitions: Sequence[Examples] | None = None,
        choices: Choices | None = None,
    ) -> None:
        self.config = config
        self.choices = choices
        self._data = data
        self._partitions = partitions

    @classmethod
    def with_own_data(cls, config: RunConfig, path: str) -> "Task":
        """Return the task of a device that has examples of its own and no test data.

        They are the partition of any number.

        Raises
        ------
        InputError
            If they cannot be loaded, or are not of the kind of the run's data set.
        """
        numbers = objective_of(config.task.name, config.task.options).targets_are_numbers
        own = load_own(config.data.name, path, data_request(config.data, numbers=numbers))
        data = DataSplit(own, own.take(np.arange(0)))
        return cls(config, data=data, partitions=_OnePartition(np.arange(len(own))))

    def reconfigured(self, config: RunConfig, choices: Choices | None) -> "Task":
        """Return the task of another configuration, or kernels, with this one's data and shares."""
        partitions = None if self.draws_examples else self.partitions
        return Task(config, data=self.data, partitions=partitions, choices=choices)

    @cached_property
    def example(self) -> ExampleSpec:
        """What the model gets and gives for one example: known by the data's name, or found.

        Raises
        ------
        InputError
            If the data are not of the learning task.
        """
        found = self._data_example
        ask = self.objective.num_outputs
        outputs = self._told(lambda: ask(found.target_shape, found.num_outputs))
        return replace(found, num_outputs=outputs)

    def _told(self, ask: Callable[[], T]) -> T:
        """Return what the learning task says; InputError that names it if it raises."""
        try:
            return ask()
        except InputError as error:
            raise InputError(f"{self._task_key}: {error}") from None
        except Exception as error:  # a task of one's own may raise anything
            raise InputError(f"{self._task_key}: {described(error)}") from error

    @property
    def _data_example(self) -> ExampleSpec:
        if self._data is not None:  # a worker that was given data may lack what loads it
            return self._data.train.example
        if encoding := data_request(self.config.data).encoding:
            return encoding.example
        return find_source(self.config.data.name).example or self.data.train.example

    @cached_property
    def objective(self) -> Objective:
        """What is learned.

        Raises
        ------
        InputError
            If there is no such task, or its options are not allowed.
        """
        return objective_of(self.config.task.name, self.config.task.options)

    @cached_property
    def data(self) -> DataSplit:
        """Training and central test data."""
        if self._data is not None:
            return self._data
        return _load_once(_as_read(self.config.data), self.objective.targets_are_numbers)

    @property
    def encoding(self) -> Encoding | None:
        """How the run's examples became numbers; loads the data only where nothing else says it."""
        known = (
            data_request(self.config.data).encoding or find_source(self.config.data.name).encoding
        )
        return known or self.data.encoding

    @cached_property
    def partitions(self) -> Sequence[Examples]:
        """Training examples of each device; drawn one by one where the data is ``sampled``.

        Raises
        ------
        InputError
            If the data cannot be loaded or shared out among so many devices.
        """
        if self._partitions is not None:
            return self._partitions
        data, devices = self.config.data, self.config.fleet.devices
        if data.partition_file:
            parts = load_partitions(data.partition_file, num_examples=len(self.data.train))
            if len(parts) != devices:
                raise InputError(
                    f"data.partition_file = {data.partition_file!r} has {len(parts)} partitions; "
                    f"allowed: {devices} (fleet.devices)"
                )
            return parts
        train = self.data.train
        if train.classes is None and needs_classes(data.partition):
            raise InputError(
                f"data.partition = {data.partition!r} shares examples out by class, and targets "
                "are no classes; allowed: iid, linear, square, exponential, sampled, or groups"
            )
        return partition(
            np.zeros(len(train), np.int64) if train.classes is None else train.classes,
            devices,
            scheme=data.partition,
            seed=self.config.run.seed,
            groups=None if train.groups is None else train.groups.numpy(),
            alpha=data.alpha,
            examples_per_device=data.examples_per_device,
            classes_per_partition=data.classes_per_partition,
            shards_per_partition=data.shards_per_partition,
        )

    @property
    def evaluation_batch(self) -> int:
        """Examples in one forward pass of an evaluation: fewer where each has many outputs."""
        outputs = self.example.num_outputs * math.prod(self.example.target_shape)
        return max(1, min(EVALUATION_BATCH, _MOST_OUTPUTS // max(1, outputs)))

    def try_objective(self) -> None:
        """Try the objective on a few examples, before anything is trained.

        Raises
        ------
        InputError
            If its loss or metrics are not usable, it does not go with the data and the model,
            forgetting is asked for and it does not tell what is correct, or ``server.stop_when``
            names no metric of it.
        """
        objective, train = self.objective, self.data.train
        if rule := StopRule.parse(self.config.server.stop_when):
            rule.watched(objective)
        few = np.unique(np.linspace(0, len(train) - 1, _TRIED).astype(np.int64))
        (batch,) = Batches(train, few, _TRIED)
        outputs = self.architecture.try_out(self.build_model(), batch.inputs)
        if not outputs.isfinite().all():
            raise InputError(
                f"model.name = {self.config.model.name!r} gives outputs that are not finite for "
                "the first examples of data.name; allowed: finite numbers"
            )
        try_objective(objective, outputs, batch.targets, key=self._task_key)
        if self.forgetting.active and objective.correct(outputs, batch.targets) is None:
            raise InputError(
                f"forgetting.fraction = {self.forgetting.fraction} is not allowed with "
                f"{self._task_key}, which does not tell what is correct; allowed: 0"
            )

    @property
    def _task_key(self) -> str:
        return f"task.name = {self.config.task.name!r}"

    @property
    def draws_examples(self) -> bool:
        """Whether each device's examples are drawn when they are asked for, and are in no file."""
        data = self.config.data
        given = self._partitions is not None or bool(data.partition_file)
        draws = getattr(PARTITIONERS.find(data.partition), "draws_examples", False)
        return draws and not given

    @cached_property
    def devices(self) -> Assignment:
        """Profile of each device of the fleet, by partition."""
        fleet = self.config.fleet
        return assign_devices(fleet.weights, fleet.devices, self.config.run.seed)

    def num_examples(self, partition_id: int) -> int:
        """Return how many examples a device has, held-out ones included, without drawing them."""
        if self.draws_examples:
            return self.config.data.examples_per_device
        return len(self.partitions[partition_id])

    def examples(self, partition_id: int) -> tuple[Examples, Examples]:
        """Return a device's (training, held-out) examples."""
        generator = numpy_generator(self.config.run.seed, "hold-out", partition_id)
        return hold_out(self.partitions[partition_id], self.config.data.hold_out, generator)

    def example_counts(self, partition_id: int) -> tuple[int, int]:
        """Return how many (training, held-out) examples a device has, without drawing them."""
        total = self.num_examples(partition_id)
        held = num_held_out(total, self.config.data.hold_out)
        return total - held, held

    @property
    def density(self) -> float:
        """Target density of the sparse layers: 1 for the dense method, which has none."""
        sparsity = self.config.sparsity
        return sparsity.density if self.method.sparse else 1.0

    @property
    def scheme(self) -> str | None:
        """Scheme of the sparse layers; None for the dense method, which has none."""
        return self.config.sparsity.scheme if self.method.sparse else None

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
    def interval(self) -> Interval:
        """Which rounds mutate."""
        return Interval(self.config.run.rounds, self.config.sparsity.period)

    @cached_property
    def forgetting(self) -> ForgettingPolicy:
        """When examples are left out."""
        return ForgettingPolicy(**self.config.forgetting.model_dump())

    def optimizer(self, progress: float) -> OptimizerSettings:
        """Return the client optimizer's settings at a progress in [0, 1]."""
        training = self.config.training
        rate = learning_rate(training.schedule, training.learning_rate, progress)
        return OptimizerSettings(
            rate,
            training.momentum,
            training.weight_decay,
            name=training.optimizer,
            beta1=training.beta1,
            beta2=training.beta2,
            eps=training.eps,
            clip_norm=training.clip_norm,
            proximal=training.proximal,
        )

    def try_out(self) -> None:
        """Use schedule, optimizer and augmentation once: faults in them are found before a run.

        Raises
        ------
        InputError
            If one of a user's own raises, or gives what it should not.
        """
        for number in range(self.config.run.rounds):
            self.optimizer(self.interval.progress(number))
        self.optimizer(0.0).build(self.model).close()
        name, seed = self.config.data.augmentation, self.config.run.seed
        two = Batches(
            self.data.train,
            np.arange(min(2, len(self.data.train))),
            2,
            generator=torch_generator(seed, "try"),
            augmentation=name,
        )
        AUGMENTATIONS.call(name, lambda: next(iter(two)))

    @cached_property
    def architecture(self) -> Architecture:
        """Which model is trained, for the data's shapes."""
        example, model = self.example, self.config.model
        shapes = self.objective.output_shapes
        allowed = self._told(
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

    def build_model(self) -> nn.Module:
        """Build the model of this seed at the target density (dense for the dense method)."""
        source = self.config.model.weights
        weights = Weights.read(Path(source)) if source else None
        built = self.architecture.model(self._model_generator(), self._sparsity, weights)
        set_choices(built, self.choices)
        return built

    def _model_generator(self) -> torch.Generator:
        return torch_generator(self.config.run.seed, "model")

    @cached_property
    def model(self) -> nn.Module:
        """The process's resident model, a shell: its user writes a state into it first."""
        return self.architecture.shell(self._sparsity, self._model_generator().initial_seed())

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
        return model_spec(self.model)

    @cached_property
    def trace(self) -> ModelTrace:
        """The model's memory needs."""
        example = self.example
        self.architecture.try_out(self.model, example.zeros(2))
        loss = TrainingLoss(self.objective.total_loss, example.target_shape, example.target_dtype)
        return trace_model(self.model, example.input_shape, example.input_dtype, loss)

    def work(self, presented: int, memory: MemoryOptions | None = None) -> Work:
        """Return the operations of training the resident model, as it is, on so many examples.

        Counting runs an image through the model, so it is done once for a number of active weights.
        """
        layers = (module for module in self.model.modules() if isinstance(module, SparseLayer))
        key = (memory, *(layer.layout.active_weights(layer.slots) for layer in layers))
        if key not in self._works:
            example = self.example
            self._works[key] = training_work(
                self.model, example.input_shape, memory, example.input_dtype
            )
        return self._works[key] * presented

    @cached_property
    def _works(self) -> dict[tuple[object, ...], Work]:
        """One image's work: (memory options, active weights of each sparse layer) -> operations."""
        return {}

    def budget(self, device: str) -> int:
        """Return the memory budget of a device profile, in bytes."""
        override = self.config.fleet.budget_bytes.get(device)
        return _profile_once(device).budget_bytes if override is None else override

    def fleet_plans(self) -> dict[str, Plan]:
        """Return the plan of each device profile of the fleet, within its budget.

        Raises
        ------
        InputError
            If a profile is unknown, or ``fleet.budgets`` names none of the fleet.
        BudgetError
            If nothing fits a device; names it and the bytes that would do.
        """
        fleet = self.config.fleet
        strangers = sorted(set(fleet.budget_bytes) - set(fleet.weights))
        if strangers:
            raise InputError(
                f"fleet.budgets names {strangers[0]}, which is not in the fleet; "
                f"allowed: {', '.join(fleet.weights)}"
            )
        own = self.config.fleet.budget_bytes
        named = {
            name: f"{name} (fleet.budgets)" if name in own else name for name in self.devices.counts
        }
        return {name: self.plan(self.budget(name), who) for name, who in named.items()}

    def plan(self, budget: int, who: str, threads: int = 1) -> Plan:
        """Plan local training within a budget.

        Parameters
        ----------
        budget : int
            Bytes that training may add to the process.
        who : str
            Whose budget it is, for the error's text.
        threads : int
            That the device computes with. A simulated one has one thread.

        Raises
        ------
        BudgetError
            If nothing fits; names ``who`` and the bytes that would do.
        """
        try:
            return self.planner(threads).plan(budget, self.config.memory.preference)
        except BudgetError as error:
            raise BudgetError(f"{who}: {error}") from None

    def planner(self, threads: int = 1) -> Planner:
        """Return a planner for this task's model, batch and method on so many threads."""
        training, sparsity = self.config.training, self.config.sparsity
        optimizer = self.optimizer(0.0)
        shape = TrainingShape(
            density=self.density,
            distribution=sparsity.densities,
            micro_batch=training.batch_size,
            batch=training.batch_size,
            momentum=optimizer.has_momentum,
            optimizer=optimizer.name,
            proximal=optimizer.proximal > 0,
            memory=self.config.memory.options,
        )
        setup = TrainingSetup(
            self.method, mutates=sparsity.mutation == MutationPlace.CLIENT, threads=threads
        )
        fixed = frozenset() if optimizer.can_release else frozenset({"release_gradients"})
        return Planner(self.trace, setup, PlanLimits.of(self.trace, shape, fixed))


@lru_cache(maxsize=2)
def _load_once(data: DataSection, numbers: bool) -> DataSplit:
    return find_source(data.name)(data_request(data, numbers=numbers))


def _as_read(data: DataSection) -> DataSection:
    """Return what of a configuration says how data is read; how it is shared out is another's."""
    keys = {"name", "path", "columns", "options", "normalise", "encoding"}
    if data.partition.startswith("column:"):
        keys.add("partition")
    return DataSection.model_construct(**data.model_dump(include=keys))


def data_request(data: DataSection, *, numbers: bool = False) -> DataRequest:
    """Return what a configuration asks of its data set; ``numbers``: also whole targets are such.

    Raises
    ------
    InputError
        If ``data.columns`` has other keys than a table has.
    """
    columns = Columns.of(read_options(data.columns))
    head, _, group = data.partition.partition(":")
    if head == "column":
        columns = replace(columns, groups=group)
    encoding = read_options(data.encoding)
    return DataRequest(
        data.path,
        columns,
        read_options(data.options),
        data.normalise,
        numbers,
        encoding=Encoding.read(encoding, "data.encoding") if encoding else None,
    )


_profile_once = lru_cache(maxsize=64)(load_profile)
