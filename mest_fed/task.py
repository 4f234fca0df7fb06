"""The learning task of a run, as both the clients and the server build it from the configuration.

A process builds it once: data, model and trace are shared by all clients that it plays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mest_fed.catalogue import AUGMENTATIONS, MODELS, PARTITIONERS, MutationPlace
from mest_fed.config import DataSection, RunConfig, from_flat, read_options
from mest_fed.config.load import Scalar
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
from mest_fed.memory import (
    MemoryOptions,
    ModelTrace,
    Plan,
    PlanLimits,
    Planner,
    TrainingSetup,
    TrainingShape,
    trace_model,
)
from mest_fed.memory.activations import segments_of
from mest_fed.nn import ModelSpec, SparseLayer, Sparsity, model_spec
from mest_fed.nn.models import Architecture, Weights
from mest_fed.nn.norms import has_batch_statistics
from mest_fed.rng import numpy_generator, torch_generator
from mest_fed.sparsity import Interval, Method, build_method
from mest_fed.training import ForgettingPolicy, OptimizerSettings, learning_rate

#: Images that a micro-batch needs for statistics over it.
_FOR_STATISTICS = 8

Examples = npt.NDArray[np.int64]


class _Everything(Sequence[Examples]):
    """The partitions of a device's own data: one, whatever its number is."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return 1

    def __getitem__(self, partition: Any) -> Any:
        return self._examples


@dataclass(frozen=True)
class Task:
    """Data, model and schedules of one configuration.

    Parameters
    ----------
    config : RunConfig
        The run.
    own_data : str
        Where a device's own examples are, which are then all that there is; empty where devices
        share a data set.
    """

    config: RunConfig
    own_data: str = ""

    @cached_property
    def example(self) -> ExampleSpec:
        """What the model gets and gives for one example: known by the data's name, or found."""
        if "data" in vars(self):  # a worker that was given data may lack what loads it
            return self.data.train.example
        if encoding := data_request(self.config.data).encoding:
            return encoding.example
        return find_source(self.config.data.name).example or self.data.train.example

    @cached_property
    def data(self) -> DataSplit:
        """Training and central test data; a device's own examples have no test data."""
        if self.own_data:
            own = load_own(self.config.data.name, self.own_data, data_request(self.config.data))
            return DataSplit(own, own.take(np.arange(0)))
        return _load_once(_as_read(self.config.data))

    @cached_property
    def partitions(self) -> Sequence[Examples]:
        """Training examples of each device; drawn one by one where the data is ``sampled``.

        A device's own examples are the partition of any number.

        Raises
        ------
        InputError
            If the data cannot be loaded or shared out among so many devices.
        """
        data, devices = self.config.data, self.config.fleet.devices
        if self.own_data:
            return _Everything(np.arange(len(self.data.train)))
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
    def draws_examples(self) -> bool:
        """Whether each device's examples are drawn when they are asked for, and are in no file."""
        data = self.config.data
        draws = getattr(PARTITIONERS.find(data.partition), "draws_examples", False)
        return draws and not data.partition_file and not self.own_data

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
        return build_method(sparsity.method, sparsity.density, sparsity.gradient_weight)

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
        return OptimizerSettings(rate, training.momentum, training.weight_decay)

    def try_out(self) -> None:
        """Use schedule and augmentation once, so that faults in them are found before a run.

        Raises
        ------
        InputError
            If one of a user's own raises, or gives what it should not.
        """
        for number in range(self.config.run.rounds):
            self.optimizer(self.interval.progress(number))
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
        return Architecture(
            model.name,
            example.input_shape,
            example.num_outputs,
            width=self._given("width"),
            norm=self._given("norm"),
            options=read_options(model.options),
            num_tokens=example.num_tokens,
            target_shape=example.target_shape,
        )

    def _given(self, key: str) -> Any:
        """Return a key of the model; None where it is at its default and the model has no such."""
        value = getattr(self.config.model, key)
        at_default = value == type(self.config.model).model_fields[key].default
        return None if at_default and not MODELS.takes(self.config.model.name, key) else value

    def build_model(self) -> nn.Module:
        """Build the model of this seed at the target density (dense for the dense method)."""
        given, sparsity = self.config.sparsity, None
        if self.method.sparse:
            sparsity = Sparsity(given.scheme, given.density, given.distribution)
        source = self.config.model.weights
        weights = Weights.read(Path(source)) if source else None
        return self.architecture.model(self._model_generator(), sparsity, weights)

    def _model_generator(self) -> torch.Generator:
        return torch_generator(self.config.run.seed, "model")

    @cached_property
    def model(self) -> nn.Module:
        """The process's resident model, a shell: whoever uses it writes a state into it first."""
        return self.architecture.shell(self.scheme, self._model_generator().initial_seed())

    @cached_property
    def spec(self) -> ModelSpec:
        """What the model's arrays mean."""
        return model_spec(self.model)

    @cached_property
    def trace(self) -> ModelTrace:
        """The model's memory needs."""
        self.architecture.try_out(self.model, self.example.input_dtype)
        return trace_model(self.model, self.example.input_shape, self.example.input_dtype)

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
        config = self.config
        training, memory, sparsity = config.training, config.memory, config.sparsity
        limits = TrainingShape(
            density=self.density,
            distribution=sparsity.distribution,
            micro_batch=training.batch_size,
            batch=training.batch_size,
            momentum=training.momentum > 0,
            memory=MemoryOptions(
                memory.recompute, memory.saved, memory.release_gradients, memory.frozen
            ),
        )
        statistics = has_batch_statistics(self.model)
        mutates = sparsity.mutation == MutationPlace.CLIENT
        return Planner(
            self.trace,
            TrainingSetup(self.method, mutates=mutates, threads=threads),
            PlanLimits(
                limits,
                least_micro_batch=_FOR_STATISTICS if statistics else 1,
                segments=len(segments_of(self.model)),
                sparse=bool(self.trace.spec.groups),
                batch_statistics=statistics,
            ),
        )


@lru_cache(maxsize=2)
def _load_once(data: DataSection) -> DataSplit:
    return find_source(data.name)(data_request(data))


def _as_read(data: DataSection) -> DataSection:
    """Return what of a configuration says how data is read; how it is shared out is another's."""
    keys = {"name", "path", "columns", "options", "normalise", "encoding"}
    if data.partition.startswith("column:"):
        keys.add("partition")
    return DataSection.model_construct(**data.model_dump(include=keys))


def data_request(data: DataSection) -> DataRequest:
    """Return what a configuration asks of its data set.

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
        encoding=Encoding.read(encoding, "data.encoding") if encoding else None,
    )


_profile_once = lru_cache(maxsize=64)(load_profile)


@lru_cache(maxsize=2)
def task_of(config: RunConfig, own_data: str = "") -> Task:
    """Return this process's task of a configuration."""
    return Task(config, own_data)


def task_from_run_config(run_config: Mapping[str, Scalar], own_data: str = "") -> Task:
    """Return this process's task of a Flower run config, with a device's own data if it has any."""
    return _task_of_items(tuple(sorted(run_config.items())), own_data)


def furnish(
    run_config: Mapping[str, Scalar], data: DataSplit, partitions: Sequence[Examples] | None
) -> None:
    """Give this process's task of a run config its data, so that it needs no file.

    Without partitions, it shares the data out itself.
    """
    places = vars(task_from_run_config(run_config))  # of its cached properties
    places["data"] = data
    if partitions is not None:
        places["partitions"] = partitions


@lru_cache(maxsize=8)
def _task_of_items(items: tuple[tuple[str, Scalar], ...], own_data: str) -> Task:
    return task_of(from_flat(dict(items)), own_data)
