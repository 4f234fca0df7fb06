"""The learning task of a run, as both the clients and the server build it from the configuration.

``Task(config)`` builds one. :data:`TASKS` has those of this process, so that data, model and trace
are shared by all clients that it plays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from mest_fed.catalogue import AUGMENTATIONS, DATASETS, PARTITIONERS, MutationPlace
from mest_fed.config import RunConfig, from_flat
from mest_fed.config.load import Scalar
from mest_fed.data import (
    Batches,
    DataSplit,
    hold_out,
    image_shape,
    load_dataset,
    load_own,
    load_partitions,
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
    TrainingSetup,
    TrainingShape,
    trace_model,
)
from mest_fed.nn import ModelSpec, SparseLayer, Sparsity, build_model, build_shell, model_spec
from mest_fed.nn.tuning import set_choices
from mest_fed.rng import numpy_generator, torch_generator
from mest_fed.sparsity import Interval, Method, build_method
from mest_fed.training import ForgettingPolicy, OptimizerSettings, learning_rate

Examples = npt.NDArray[np.int64]


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
        own = load_own(config.data.name, path)
        data = DataSplit(own, replace(own, images=own.images[:0], labels=own.labels[:0]))
        return cls(config, data=data, partitions=_OnePartition(np.arange(len(own))))

    def reconfigured(self, config: RunConfig, choices: Choices | None) -> "Task":
        """Return the task of another configuration, or kernels, with this one's data and shares."""
        partitions = None if self.draws_examples else self.partitions
        return Task(config, data=self.data, partitions=partitions, choices=choices)

    @cached_property
    def image_facts(self) -> tuple[tuple[int, int, int], int]:
        """(channels, height, width) of an image, and classes: known of our data sets, else read."""
        if self._data is not None:
            return self._data.train.input_shape, self._data.train.num_classes
        if DATASETS.is_builtin(self.config.data.name):
            return image_shape(self.config.data.name)
        return self.data.train.input_shape, self.data.train.num_classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self.image_facts[0]

    @cached_property
    def data(self) -> DataSplit:
        """Training and central test data."""
        if self._data is not None:
            return self._data
        return _load_once(self.config.data.name, self.config.data.path)

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
        labels, seed = self.data.train.labels.numpy(), self.config.run.seed
        return partition(
            labels,
            devices,
            scheme=data.partition,
            seed=seed,
            alpha=data.alpha,
            examples_per_device=data.examples_per_device,
            classes_per_partition=data.classes_per_partition,
            shards_per_partition=data.shards_per_partition,
        )

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

    def build_model(self) -> nn.Module:
        """Build the model of this seed at the target density (dense for the dense method)."""
        (shape, classes), model = self.image_facts, self.config.model
        given, sparsity = self.config.sparsity, None
        if self.method.sparse:
            sparsity = Sparsity(given.scheme, given.density, given.distribution)
        built = build_model(
            model.name,
            shape,
            classes,
            generator=torch_generator(self.config.run.seed, "model"),
            width=model.width,
            norm=model.norm,
            sparsity=sparsity,
        )
        set_choices(built, self.choices)
        return built

    @cached_property
    def model(self) -> nn.Module:
        """The process's resident model, a shell: whoever uses it writes a state into it first."""
        (shape, classes), model = self.image_facts, self.config.model
        return build_shell(
            model.name, shape, classes, width=model.width, norm=model.norm, scheme=self.scheme
        )

    @cached_property
    def spec(self) -> ModelSpec:
        """What the model's arrays mean."""
        return model_spec(self.model)

    @cached_property
    def trace(self) -> ModelTrace:
        """The model's memory needs."""
        return trace_model(self.model, self.shape)

    def work(self, presented: int, memory: MemoryOptions | None = None) -> Work:
        """Return the operations of training the resident model, as it is, on so many examples.

        Counting runs an image through the model, so it is done once for a number of active weights.
        """
        layers = (module for module in self.model.modules() if isinstance(module, SparseLayer))
        key = (memory, *(layer.layout.active_weights(layer.slots) for layer in layers))
        if key not in self._works:
            self._works[key] = training_work(self.model, self.shape, memory)
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
        return {name: self.plan(self.budget(name), name) for name in self.devices.counts}

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
        shape = TrainingShape(
            density=self.density,
            distribution=sparsity.distribution,
            micro_batch=training.batch_size,
            batch=training.batch_size,
            momentum=training.momentum > 0,
            memory=self.config.memory.options,
        )
        setup = TrainingSetup(
            self.method, mutates=sparsity.mutation == MutationPlace.CLIENT, threads=threads
        )
        return Planner(self.trace, setup, PlanLimits.of(self.trace, shape))


_load_once = lru_cache(maxsize=2)(load_dataset)
_profile_once = lru_cache(maxsize=64)(load_profile)


class ProcessTasks:
    """The tasks of this process, by run config; the oldest are dropped.

    Flower hands a ClientApp a message and its node's context, nothing that this process made. So
    what its clients share, and what the process was given for them, is kept here.

    Parameters
    ----------
    keep : int
        How many tasks are kept.
    """

    def __init__(self, keep: int = 8) -> None:
        self._keep = keep
        self._tasks: dict[object, Task] = {}
        self._lock = Lock()

    def get(self, run_config: Mapping[str, Scalar], own_data: str = "") -> Task:
        """Return the task of a run config, which is built if it is not here.

        Parameters
        ----------
        run_config : mapping of str to scalar
            As Flower gives it.
        own_data : str
            Where a device's own examples are; empty where devices share a data set.

        Raises
        ------
        InputError
            If a key or value of the run config, or the device's own data, is wrong.
        """
        key = _key(run_config, own_data)  # its hash takes microseconds, so one look-up
        task = self._tasks.get(key)
        if task is not None:
            return task
        config = from_flat(run_config)
        return self._put(key, Task.with_own_data(config, own_data) if own_data else Task(config))

    def put(self, run_config: Mapping[str, Scalar], task: Task) -> Task:
        """Give the clients of a run config a task; return it."""
        return self._put(_key(run_config, ""), task)

    def _put(self, key: object, task: Task) -> Task:
        with self._lock:
            self._tasks.pop(key, None)
            self._tasks[key] = task
            while len(self._tasks) > self._keep:
                del self._tasks[next(iter(self._tasks))]
        return task


def _key(run_config: Mapping[str, Scalar], own_data: str) -> object:
    return own_data, tuple(sorted(run_config.items()))


#: The tasks of this process.
TASKS = ProcessTasks()
