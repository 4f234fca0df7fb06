"""The virtual clock: decides when and whether each simulated device replies, and at what cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MessageType

from mest_fed.catalogue import AVAILABILITIES
from mest_fed.config import FleetConfig, RunConfig
from mest_fed.config.behaviour import BehaviourSection
from mest_fed.devices import DeviceProfile, download_seconds, round_work, upload_seconds
from mest_fed.errors import InputError, not_allowed
from mest_fed.schema import TaskStatus
from mest_fed.server.round_record import ClientTiming
from mest_fed.simulation.behaviour.availability import Availability
from mest_fed.simulation.behaviour.behaviour import DeviceBehaviour, MemoryNeed
from mest_fed.simulation.behaviour.conditions import DeviceConditions, NoTime
from mest_fed.simulation.behaviour.traces import Trace, load_trace
from mest_fed.simulation.engine.interfaces import TaskResult, node_id_of, partition_of
from mest_fed.sparsity.state import ModelSpec
from mest_fed.units import format_seconds
from mest_fed.wire.values import value_codec

_TIMED = (MessageType.TRAIN, MessageType.EVALUATE)


class VirtualClock:
    """DeviceSimulator of a fleet: what its devices would take. See :class:`DeviceSimulator`.

    All of it is modelled. Queries cost nothing.

    Parameters
    ----------
    profiles : mapping of int to DeviceProfile
        The device of each node id; read one by one, so that it may be lazy.
    scheme : str
        Sparsity scheme, for the speed of sparse layers.
    seed : int
        Seed of the run.
    deadline : float, optional
        Seconds after which the server no longer waits. A later reply is lost; its device spends
        the full time and energy all the same.
    behaviour : BehaviourSection, optional
        Devices' behaviour; by default they are there by chance, as likely as their profile says.
    trace : Availability, optional
        Read from ``behaviour.trace``, where there is one.
    needs : mapping of int to MemoryNeed, optional
        Node id -> what training takes there. A device that has too little left refuses to train;
        by default memory is not simulated.
    flops_per_example : float
        Operations of a train task for each example that a client reports, where it does not report
        its work; an evaluate task takes a third.

    Attributes
    ----------
    now : float
        Virtual seconds since the start of the run; the grid moves it.
    instructions : int
        Number of instructions so far that took time.
    """

    def __init__(
        self,
        profiles: Mapping[int, DeviceProfile],
        *,
        scheme: str,
        seed: int,
        deadline: float | None = None,
        behaviour: BehaviourSection | None = None,
        trace: Availability | None = None,
        needs: Mapping[int, MemoryNeed] | None = None,
        flops_per_example: float = 0.0,
    ) -> None:
        if deadline is not None and not deadline > 0:
            raise not_allowed("deadline", deadline, "a positive number of seconds")
        self._scheme = scheme
        self._flops_per_example = flops_per_example
        self._deadline = math.inf if deadline is None else deadline
        self._behaviour = DeviceBehaviour(
            BehaviourSection() if behaviour is None else behaviour,
            seed,
            lambda device: profiles[node_id_of(device)],
            need_of=None if needs is None else lambda device: needs[node_id_of(device)],
            trace=trace,
        )
        self._timings: list[ClientTiming] = []
        #: When instructions were sent whose devices were busy then, by their numbers.
        self._sent: dict[int, float] = {}
        self.now = 0.0
        self.instructions = 0

    def draw_conditions(
        self, instruction: Message, *, start: float, within: float, number: int | None = None
    ) -> DeviceConditions | NoTime:
        """Draw the circumstances; see :meth:`DeviceSimulator.draw_conditions`."""
        kind = instruction.metadata.message_type.partition(".")[0]
        if kind not in _TIMED:
            return NoTime()
        if number is None:
            self.instructions += 1
            number = self.instructions
            self._remember(number, start)
        conditions = self._behaviour.draw_conditions(
            partition_of(instruction.metadata.dst_node_id),
            number,
            start=start,
            # A device that was not busy began when it was asked.
            within=min(within, self._sent.get(number, start) + self._deadline - start),
            trains=kind == MessageType.TRAIN,
            scheme=self._scheme,
        )
        if self._flops_per_example:
            conditions = replace(conditions, flops_per_example=self._flops_per_example)
        return conditions

    def record(self, task_result: TaskResult) -> None:
        """Keep the timing for the logs, and drain the battery."""
        timing: ClientTiming | None = task_result.timing
        if timing is None:
            return
        self._timings.append(timing)
        if timing.status is not TaskStatus.AWAY:
            device = partition_of(timing.node_id)
            self._behaviour.spend(device, timing.start, timing.seconds, timing.energy_joules or 0.0)

    def present_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return those nodes that are there now with charge enough, in the order given.

        Where devices are there by chance, all are: that is drawn only when they are instructed.
        """
        return [node for node in node_ids if self._behaviour.is_ready(partition_of(node), self.now)]

    def next_present(self, node_ids: Sequence[int]) -> float:
        """Return when the first of some nodes, none of which is there, is worth asking again.

        Infinite if none of them ever comes.
        """
        moments = (self._behaviour.next_ready(partition_of(node), self.now) for node in node_ids)
        return min(moments, default=math.inf)

    def train_seconds(self) -> dict[int, float]:
        """Return how long nodes took to train, of the timings that were not taken yet."""
        return {
            timing.node_id: timing.seconds
            for timing in self._timings
            if timing.message_type == MessageType.TRAIN
            and timing.status in (TaskStatus.OK, TaskStatus.LATE)
        }

    def take_timings(self) -> list[ClientTiming]:
        """Return the timings since the last call, in message order, and forget them."""
        timings, self._timings = self._timings, []
        return timings

    def state(self) -> dict[str, npt.NDArray[np.float64 | np.int64]]:
        """Return everything that a run needs to go on, but for timings that were not taken."""
        return {
            "now": np.array(self.now, np.float64),
            "instructions": np.array(self.instructions, np.int64),
            "sent.numbers": np.array(list(self._sent), np.int64),
            "sent.moments": np.array(list(self._sent.values()), np.float64),
            **self._behaviour.state(),
        }

    def restore(self, state: Mapping[str, npt.NDArray[np.float64 | np.int64]]) -> None:
        """Take back what :meth:`state` gave."""
        self.now = float(state["now"])
        self.instructions = int(state["instructions"])
        numbers, moments = state["sent.numbers"].tolist(), state["sent.moments"].tolist()
        self._sent = dict(zip(numbers, moments, strict=True))
        self._behaviour.restore(state)

    def _remember(self, number: int, start: float) -> None:
        """Keep when an instruction was sent, if that is not its start, until its deadline."""
        if start > self.now and self._deadline < math.inf:
            kept = self._sent.items()
            self._sent = {n: sent for n, sent in kept if sent + self._deadline >= self.now}
            self._sent[number] = self.now


def check_cohort(config: RunConfig) -> None:
    """Refuse a cohort that is larger than the fleet.

    Raises
    ------
    InputError
        If it is.
    """
    devices, cohort = config.fleet.devices, config.server.clients_per_round
    if cohort > devices:
        allowed = f"1 to {devices} (fleet.devices = {devices})"
        raise not_allowed("server.clients_per_round", cohort, allowed)


def check_deadline(
    config: RunConfig, spec: ModelSpec, tiers: Iterable[tuple[DeviceProfile, float]]
) -> None:
    """Refuse a deadline that passes before any device could have received and sent its values.

    That is taken at the rates of the profiles, with what starting a process takes; time to train
    and masks come on top of it.

    Parameters
    ----------
    config : RunConfig
        The run.
    spec : ModelSpec
        Its model.
    tiers : iterable of (DeviceProfile, float)
        Each profile of the fleet with the density of its plan.

    Raises
    ------
    InputError
        If no device can meet it; says what the fastest device needs at least.
    """
    deadline = config.fleet.deadline or math.inf
    needed = {
        profile.name: least_seconds(config, spec, profile, density) for profile, density in tiers
    }
    fastest = min(needed, key=lambda name: needed[name])
    if deadline < needed[fastest]:
        raise InputError(
            f"fleet.deadline = {deadline:g} is not allowed: no device meets it; allowed: more than "
            f"{needed[fastest]:.3g}, the {format_seconds(needed[fastest])} that {fastest} needs at "
            "least to start, to receive and to send its values (modelled), or 0 for none"
        )


def least_seconds(
    config: RunConfig, spec: ModelSpec, profile: DeviceProfile, density: float
) -> float:
    """Return the time to start, to receive and to send a model's values, no more (modelled).

    What messages take in Python is part of it.
    """
    values = density * spec.sparse_weights + sum(math.prod(s) for s in spec.dense.values())
    down, up = (
        value_codec(form).value_bytes() for form in (config.wire.download, config.wire.upload)
    )
    transfer = download_seconds(profile, down * values) + upload_seconds(profile, up * values)
    start = profile.message_seconds if config.behaviour.process_per_message else 0.0
    return start + transfer + round_work(spec.tensors).python_seconds * profile.python_time


def trace_of(config: RunConfig | FleetConfig, devices: Sequence[str]) -> Trace | None:
    """Read the run's trace, if it has one.

    Parameters
    ----------
    config : RunConfig or FleetConfig
        The run, or its devices alone.
    devices : sequence of str
        Profile of each partition.

    Raises
    ------
    InputError
        If the file is missing or wrong.
    """
    behaviour = config.behaviour
    if AVAILABILITIES.takes(behaviour.availability, "trace") != bool(behaviour.trace):
        raise InputError(
            f"behaviour.trace = {behaviour.trace!r} is not allowed with behaviour.availability = "
            f"{behaviour.availability!r}; allowed: a file's path with 'trace', nothing otherwise"
        )
    if not behaviour.trace:
        return None
    return load_trace(Path(behaviour.trace), devices, repeats=behaviour.trace_repeats)
