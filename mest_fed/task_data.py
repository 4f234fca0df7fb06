"""What a run's model learns from: data, examples of each device, and the objective."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from mest_fed.catalogue import PARTITIONERS
from mest_fed.config import DataSection, RunConfig, read_options
from mest_fed.data import (
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
from mest_fed.described import described
from mest_fed.devices import Assignment, assign_devices
from mest_fed.errors import InputError
from mest_fed.rng import numpy_generator
from mest_fed.training import EVALUATION_BATCH, Objective, objective_of

#: Outputs of one forward pass of an evaluation: 64 MB of float32.
_MOST_OUTPUTS = 2**24

Examples = npt.NDArray[np.int64]
T = TypeVar("T")


class TaskData:
    """Data, objective and the devices' examples of one configuration.

    Parameters
    ----------
    config, data, partitions
        As for :class:`~mest_fed.task.Task`.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        data: DataSplit | None = None,
        partitions: Sequence[Examples] | None = None,
    ) -> None:
        self.config = config
        self._data = data
        self._partitions = partitions

    @classmethod
    def with_own_data(cls, config: RunConfig, path: str) -> Self:
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
        return cls(config, data=data, partitions=OnePartition(np.arange(len(own))))

    @property
    def _data_example(self) -> ExampleSpec:
        if self._data is not None:  # a worker that was given data may lack what loads it
            return self._data.train.example
        if encoding := data_request(self.config.data).encoding:
            return encoding.example
        return find_source(self.config.data.name).example or self.data.train.example

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
        outputs = self._answer_of(lambda: ask(found.target_shape, found.num_outputs))
        return replace(found, num_outputs=outputs)

    def _answer_of(self, ask: Callable[[], T]) -> T:
        """Return what the learning task answers; InputError that names it if it raises."""
        try:
            return ask()
        except InputError as error:
            raise InputError(f"{self.task_key}: {error}") from None
        except Exception as error:  # a task of one's own may raise anything
            raise InputError(f"{self.task_key}: {described(error)}") from error

    @cached_property
    def objective(self) -> Objective:
        """What is learned.

        Raises
        ------
        InputError
            If there is no such task, or its options are not allowed.
        """
        return objective_of(self.config.task.name, self.config.task.options)

    @property
    def task_key(self) -> str:
        """What the configuration says of the objective, for errors."""
        return f"task.name = {self.config.task.name!r}"

    @cached_property
    def data(self) -> DataSplit:
        """Training and central test data."""
        if self._data is not None:
            return self._data
        return load_data(_as_read(self.config.data), self.objective.targets_are_numbers)

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
    def evaluation_batch(self) -> int:
        """Examples in one forward pass of an evaluation: fewer where each has many outputs."""
        outputs = self.example.num_outputs * math.prod(self.example.target_shape)
        return max(1, min(EVALUATION_BATCH, _MOST_OUTPUTS // max(1, outputs)))


class OnePartition(Sequence[Examples]):
    """The partitions of one device alone: the same examples, whatever the number is.

    Parameters
    ----------
    examples : array
        Its examples.
    """

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return 1

    def __getitem__(self, partition: Any) -> Any:
        return self._examples


@lru_cache(maxsize=2)
def load_data(data: DataSection, numbers: bool) -> DataSplit:
    """Load a data set, or return it where this process has it; ``numbers``: targets are such."""
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
