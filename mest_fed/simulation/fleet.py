"""The fleet of a run: which device holds which share of the data, and what each device plans."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mest_fed.client.capability import GIVEN, GIVEN_PEAK
from mest_fed.client.kernels import kernel_table
from mest_fed.config import from_flat
from mest_fed.config.load import Scalar
from mest_fed.data import ArrayData, DataSplit
from mest_fed.devices import Assignment, DeviceProfile, load_profile
from mest_fed.errors import InputError
from mest_fed.kernels import torch_threads
from mest_fed.kernels.choice import Choices
from mest_fed.kernels.table import Table
from mest_fed.memory import Plan
from mest_fed.process_tasks import PROCESS_TASKS
from mest_fed.server.run_folder import RunFolder
from mest_fed.server.summary import TierPlan
from mest_fed.simulation.engine.interfaces import (
    NodeKind,
    Nodes,
    make_nodes,
    node_id_of,
    partition_of,
)
from mest_fed.task import Task
from mest_fed.task_data import Examples

Fact = TypeVar("Fact")


@dataclass(frozen=True)
class Fleet:
    """Devices by partition, and their tiers.

    Parameters
    ----------
    devices : Assignment
        Partition -> profile name.
    tiers : list of TierPlan
        One for each profile, by budget.
    plans : dict of str to Plan
        Profile name (or path), as in the mix -> its plan.
    kinds : dict of str to DeviceProfile
        Profile name (or path) -> what it says of the device.
    examples_of : callable
        Partition -> number of its examples.
    """

    devices: Assignment
    tiers: list[TierPlan]
    plans: dict[str, Plan]
    kinds: dict[str, DeviceProfile]
    examples_of: Callable[[int], int]

    @classmethod
    def of(
        cls,
        task: Task,
        plans: Mapping[str, Plan] | None = None,
        kinds: Mapping[str, DeviceProfile] | None = None,
    ) -> "Fleet":
        """Mix the fleet of a run.

        Parameters
        ----------
        task : Task
            The run's task.
        plans : mapping of str to Plan, optional
            Profile name -> its plan, where the run has made them before.
        kinds : mapping of str to DeviceProfile, optional
            Profile name -> what it said when the run began; what it says today by default.

        Raises
        ------
        InputError
            If a profile is unknown, an override names none of the fleet, or a budget fits no plan.
        """
        counts = task.devices.counts
        if plans is None:
            plans = task.fleet_plans()
        elif plans.keys() != counts.keys():
            raise InputError("the plans of the run are not those of its fleet")
        if kinds is None:
            kinds = {name: load_profile(name) for name in counts}
        tiers = [TierPlan(kinds[name], counts[name], plans[name]) for name in counts]
        tiers.sort(key=lambda tier: tier.plan.budget)
        own = {name: plans[name] for name in counts}
        return cls(task.devices, tiers, own, dict(kinds), task.num_examples)

    def nodes(self, peaks: Mapping[Plan, int]) -> Nodes:
        """Return the fleet's Flower nodes; each knows its plan and the plan's measured peak."""
        kinds = {device: _kind(device, plan, peaks) for device, plan in self.plans.items()}

        def kind_of(partition: int) -> NodeKind:
            kind = kinds[self.devices[partition]]
            return replace(kind, cost=kind.cost * self.examples_of(partition))

        return make_nodes(len(self.devices), kind_of)

    @property
    def profiles(self) -> Mapping[int, DeviceProfile]:
        """Node id -> what its device is."""
        return self.by_node(self.kinds)

    def nobody_trains(self, task: Task) -> str | None:
        """Say that all devices leave out a part of the model; None if one trains all of it."""
        largest = max(plan.density for plan in self.plans.values())
        if largest >= task.density:
            return None
        if task.method.cuts_width:
            key, value = "model.width", task.config.model.width
        else:
            key, value = "sparsity.density", task.density
        return (
            f"no device trains more than {largest / task.density:.3g} of the {task.divided} of "
            f"{key} = {value:g}: the others stay in the model as they began; the largest plan is "
            f"that of {key} = {value * largest / task.density:g}"
        )

    def changed_profiles(self) -> list[str]:
        """Return the profiles that say something else today, or are no profiles any more."""
        return [name for name, kept in self.kinds.items() if _today(name) != kept]

    def by_node(self, facts: Mapping[str, Fact]) -> Mapping[int, Fact]:
        """Node id -> what is said of its device's profile."""
        return ByNode(self.devices, facts)


def _today(name: str) -> DeviceProfile | None:
    try:
        return load_profile(name)
    except InputError:
        return None


class ByNode(Mapping[int, Fact]):
    """Facts of nodes, looked up by their devices when they are asked for."""

    def __init__(self, devices: Assignment, facts: Mapping[str, Fact]) -> None:
        self._devices = devices
        self._facts = facts

    def __getitem__(self, node_id: int) -> Fact:
        """Return a node's fact; KeyError if there is no such node."""
        partition = partition_of(node_id)
        if not 0 <= partition < len(self):
            raise KeyError(node_id)
        return self._facts[self._devices[partition]]

    def __iter__(self) -> Iterator[int]:
        """Iterate over the node ids."""
        return map(node_id_of, range(len(self)))

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self._devices)


def _kind(device: str, plan: Plan, peaks: Mapping[Plan, int]) -> NodeKind:
    config: dict[str, str | int] = {"device": device, GIVEN: plan.as_json()}
    if plan in peaks:
        config[GIVEN_PEAK] = peaks[plan]
    return NodeKind(config, cost=_cost(plan), memory=peaks.get(plan, plan.footprint.total))


def _cost(plan: Plan) -> float:
    """Return how long an example takes, compared with a dense model's: the longest run first.

    A step of the small CNN at density 0.1 takes 0.4 of a dense one (measured, batch 10).
    """
    return (1 + 2 * plan.density) / 3


def run_kernels(task: Task, fleet: Fleet, folder: RunFolder, *, resume: bool) -> Table:
    """Choose the kernels of a run, or take those of a run that is resumed.

    Implementations differ in the last bits, so that a resumed run must have its own again, and
    all workers the same.

    Raises
    ------
    InputError
        If the folder's table is unusable or missing.
    """
    if resume:
        return folder.read_kernels()
    tiers = sorted(fleet.tiers, key=lambda tier: -tier.clients)
    with torch_threads(1):  # as clients compute
        table = kernel_table(task, [tier.plan for tier in tiers])
    return table


Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]


@dataclass(frozen=True)
class SharedData:
    """A run's data, as arrays that processes of a machine share.

    Parameters
    ----------
    facts : dict
        What both parts have beside their arrays, such as the number of classes.
    train, test : (array, array)
        Inputs and targets.
    examples, ends : array or None
        int64: examples of all partitions, and where each partition ends; None where each device's
        examples are drawn when they are asked for.
    """

    facts: Mapping[str, Any]
    train: Arrays
    test: Arrays
    examples: npt.NDArray[np.int64] | None
    ends: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, task: Task) -> "SharedData":
        """Take the data of a task."""
        train, test = task.data.train, task.data.test
        names = ("num_classes", "mean", "std", "num_tokens")
        facts = {name: getattr(train, name) for name in names}
        examples = ends = None
        if not task.draws_examples:
            examples = np.concatenate(task.partitions)
            ends = np.cumsum([len(part) for part in task.partitions])
        return cls(facts, _arrays(train), _arrays(test), examples, ends)

    @property
    def data(self) -> DataSplit:
        """The data, for a task."""
        return DataSplit(self._data(self.train), self._data(self.test))

    @property
    def partitions(self) -> Sequence[Examples] | None:
        """The partitions, for a task; None where it draws them."""
        if self.examples is None or self.ends is None:
            return None
        return np.split(self.examples, self.ends[:-1])

    def _data(self, arrays: Arrays) -> ArrayData:
        with warnings.catch_warnings():
            # They are read-only, as is what they are used for.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            inputs, targets = map(torch.from_numpy, arrays)
        return ArrayData(inputs, targets, **self.facts)


@dataclass(frozen=True)
class TaskSetup:
    """What a worker builds the run's task from, before its first client.

    Parameters
    ----------
    run_config : mapping of str to scalar
        The run, as its clients see it.
    choices : Choices
        The run's kernels.
    data : SharedData or None
        Its data; None where the worker finds them as the run config says.
    """

    run_config: Mapping[str, Scalar]
    choices: Choices
    data: SharedData | None = None

    def install(self) -> None:
        """Give the task to the clients of this process."""
        config = from_flat(self.run_config)
        if self.data is None:
            task = Task(config, choices=self.choices)
        else:
            data, partitions = self.data.data, self.data.partitions
            task = Task(config, data=data, partitions=partitions, choices=self.choices)
        PROCESS_TASKS.put(self.run_config, task)


def _arrays(data: ArrayData) -> Arrays:
    return data.inputs.numpy(), data.targets.numpy()
