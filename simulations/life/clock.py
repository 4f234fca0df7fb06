"""The virtual clock: draws what devices meet and keeps what it cost them. All modelled."""

import math
from collections.abc import Mapping

from flwr.app import Message, MessageType

from mest_fed.devices import DeviceProfile
from mest_fed.errors import not_allowed
from mest_fed.rng import numpy_generator
from simulations.engine.fate import Settled
from simulations.life.conditions import DeviceConditions, NoTime
from simulations.life.timing import ClientTiming

_TIMED = (MessageType.TRAIN, MessageType.EVALUATE)
_AWAY = "device was away"


class VirtualClock:
    """Fate of a fleet: what its devices would take. See :class:`simulations.engine.fate.Fate`.

    The work of a client is what its reply reports in a MetricRecord: ``flops-dense`` and
    ``flops-sparse``, none where absent. Queries cost nothing.

    Parameters
    ----------
    profiles : mapping of int to DeviceProfile
        The device of each node id.
    scheme : str
        Sparsity scheme, for the speed of sparse layers.
    seed : int
        Seed of the run; whether a device is there is drawn from (seed, instruction, node id).
    deadline : float, optional
        Seconds after which the server no longer waits. A later reply is lost; its device spends
        the full time and energy all the same.

    Attributes
    ----------
    now : float
        Virtual seconds since the start of the run. A resumed run sets it.
    instructions : int
        Number of instructions so far that took time; a resumed run, which asks its nodes anew who
        they are, sets it.
    """

    def __init__(
        self,
        profiles: Mapping[int, DeviceProfile],
        *,
        scheme: str,
        seed: int,
        deadline: float | None = None,
    ) -> None:
        if deadline is not None and not deadline > 0:
            raise not_allowed("deadline", deadline, "a positive number of seconds")
        self._profiles = profiles
        self._scheme = scheme
        self._seed = seed
        self._deadline = math.inf if deadline is None else deadline
        self._timings: list[ClientTiming] = []
        self.now = 0.0
        self.instructions = 0

    def meet(
        self, instruction: Message, *, start: float, within: float, number: int | None = None
    ) -> DeviceConditions | NoTime:
        """Draw whether the device is there; see :meth:`simulations.engine.fate.Fate.meet`."""
        if instruction.metadata.message_type.partition(".")[0] not in _TIMED:
            return NoTime()
        if number is None:
            self.instructions += 1
            number = self.instructions
        node_id = instruction.metadata.dst_node_id
        profile = self._profiles[node_id]
        draw = numpy_generator(self._seed, "availability", number, node_id).random()
        refusal = None if draw < profile.availability else _AWAY
        limit = min(within, self._deadline)
        return DeviceConditions(number, profile, self._scheme, start, limit, refusal)

    def note(self, settled: Settled) -> None:
        """Keep the timing for the logs."""
        if settled.timing is not None:
            self._timings.append(settled.timing)

    def take_timings(self) -> list[ClientTiming]:
        """Return the timings since the last call, in message order, and forget them."""
        timings, self._timings = self._timings, []
        return timings
