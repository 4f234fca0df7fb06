"""The virtual clock: has devices' lives meet instructions, and keeps what it cost them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MessageType

from mest_fed.config.life import LifeSection
from mest_fed.devices import DeviceProfile
from mest_fed.errors import not_allowed
from mest_fed.schema import TaskStatus
from server.timing import ClientTiming
from simulations.engine.fate import Settled
from simulations.engine.nodes import FIRST_NODE_ID, node_id_of
from simulations.life.availability import Availability
from simulations.life.conditions import DeviceConditions, NoTime
from simulations.life.lives import Lives
from simulations.life.memory_gate import MemoryNeed

_TIMED = (MessageType.TRAIN, MessageType.EVALUATE)


class VirtualClock:
    """Fate of a fleet: what its devices would take. See :class:`simulations.engine.fate.Fate`.

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
    life : LifeSection, optional
        Devices' lives; by default they are there by chance, as likely as their profile says.
    trace : Availability, optional
        Read from ``life.trace``, where there is one.
    needs : mapping of int to MemoryNeed, optional
        Node id -> what its plan takes, for ``life.memory_pressure``.

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
        life: LifeSection | None = None,
        trace: Availability | None = None,
        needs: Mapping[int, MemoryNeed] | None = None,
    ) -> None:
        if deadline is not None and not deadline > 0:
            raise not_allowed("deadline", deadline, "a positive number of seconds")
        self._scheme = scheme
        self._deadline = math.inf if deadline is None else deadline
        self._lives = Lives(
            LifeSection() if life is None else life,
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

    def meet(
        self, instruction: Message, *, start: float, within: float, number: int | None = None
    ) -> DeviceConditions | NoTime:
        """Draw the circumstances; see :meth:`simulations.engine.fate.Fate.meet`."""
        kind = instruction.metadata.message_type.partition(".")[0]
        if kind not in _TIMED:
            return NoTime()
        if number is None:
            self.instructions += 1
            number = self.instructions
            self._remember(number, start)
        return self._lives.meet(
            _device(instruction.metadata.dst_node_id),
            number,
            start=start,
            # A device that was not busy began when it was asked.
            within=min(within, self._sent.get(number, start) + self._deadline - start),
            trains=kind == MessageType.TRAIN,
            scheme=self._scheme,
        )

    def note(self, settled: Settled) -> None:
        """Keep the timing for the logs, and drain the battery."""
        timing: ClientTiming | None = settled.timing
        if timing is None:
            return
        self._timings.append(timing)
        if timing.status is not TaskStatus.AWAY:
            device = _device(timing.node_id)
            self._lives.spend(device, timing.start, timing.seconds, timing.energy_joules)

    def present_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return those nodes that are there now with charge enough, in the order given.

        Where devices are there by chance, all are: that is drawn only when they are instructed.
        """
        return [node for node in node_ids if self._lives.is_ready(_device(node), self.now)]

    def next_present(self, node_ids: Sequence[int]) -> float:
        """Return when the first of some nodes, none of which is there, is worth asking again.

        Infinite if none of them ever comes.
        """
        moments = (self._lives.next_ready(_device(node), self.now) for node in node_ids)
        return min(moments, default=math.inf)

    def train_seconds(self) -> dict[int, float]:
        """Return how long nodes took to train, of the timings that nobody has taken yet."""
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
            **self._lives.state(),
        }

    def restore(self, state: Mapping[str, npt.NDArray[np.float64 | np.int64]]) -> None:
        """Take back what :meth:`state` gave."""
        self.now = float(state["now"])
        self.instructions = int(state["instructions"])
        numbers, moments = state["sent.numbers"].tolist(), state["sent.moments"].tolist()
        self._sent = dict(zip(numbers, moments, strict=True))
        self._lives.restore(state)

    def _remember(self, number: int, start: float) -> None:
        """Keep when an instruction was sent, if that is not its start, until its deadline."""
        if start > self.now and self._deadline < math.inf:
            kept = self._sent.items()
            self._sent = {n: sent for n, sent in kept if sent + self._deadline >= self.now}
            self._sent[number] = self.now


def _device(node_id: int) -> int:
    """Return the partition of a node."""
    return node_id - FIRST_NODE_ID
