"""The learning task of a run, as both the clients and the server build it from the configuration.

A process builds it once: data, model and trace are shared by all clients that it plays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
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
from mest_fed.nn import (
    LayerDensity,
    ModelSpec,
    Selection,
    SparseLayer,
    Sparsity,
    build_model,
    build_shell,
    layer_densities,
    model_spec,
)
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self._form[0]

    @cached_property
    def _form(self) -> tuple[tuple[int, int, int], int]:
        """Shape of an image and number of classes: known of our data sets, else read."""
        if DATASETS.is_builtin(self.config.data.name):
            return image_shape(self.config.data.name)
        return self.data.train.input_shape, self.data.train.num_classes

    @cached_property
    def data(self) -> DataSplit:
        """Training and central test data; a device's own examples have no test data."""
        if self.own_data:
            own = load_own(self.config.data.name, self.own_data)
            return DataSplit(own, replace(own, images=own.images[:0], labels=own.labels[:0]))
        return _load_once(self.config.data.name, self.config.data.path)

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

    def build_model(self) -> nn.Module:
        """Build the model of this seed at the target density (dense for the dense method)."""
        (shape, classes), model = self._form, self.config.model
        given, sparsity = self.config.sparsity, None
        if self.method.sparse:
            sparsity = Sparsity(given.scheme, given.density, given.densities, self._selection)
        return build_model(
            model.name,
            shape,
            classes,
            generator=torch_generator(self.config.run.seed, "model"),
            width=model.width,
            norm=model.norm,
            sparsity=sparsity,
        )

    @cached_property
    def model(self) -> nn.Module:
        """The process's resident model, a shell: whoever uses it writes a state into it first."""
        (shape, classes), model = self._form, self.config.model
        return build_shell(
            model.name,
            shape,
            classes,
            width=model.width,
            norm=model.norm,
            scheme=self.scheme,
            distribution=self.config.sparsity.densities,
            selection=self._selection,
        )

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
            distribution=sparsity.densities,
            micro_batch=training.batch_size,
            batch=training.batch_size,
            momentum=training.momentum > 0,
            memory=MemoryOptions(
                memory.recompute,
                memory.saved,
                memory.release_gradients,
                memory.frozen,
                memory.segments,
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
                segments=len(segments_of(self.model, memory.segments)),
                sparse=bool(self.trace.spec.groups),
                batch_statistics=statistics,
            ),
        )


_load_once = lru_cache(maxsize=2)(load_dataset)
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
