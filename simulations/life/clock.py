"""Virtual time of synchronous rounds: how long devices would have taken. All of it is modelled."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message, MessageType, MetricRecord, RecordDict

from mest_fed.devices import (
    DeviceProfile,
    Work,
    download_seconds,
    energy_joules,
    train_seconds,
    upload_seconds,
)
from mest_fed.errors import not_allowed
from mest_fed.rng import numpy_generator
from mest_fed.wire.size import content_bytes
from simulations.engine.flower_internals import NODE_UNAVAILABLE, error_reply

_TIMED = (MessageType.TRAIN, MessageType.EVALUATE)
_AWAY = "device was away"


@dataclass(frozen=True)
class ClientTiming:
    """What one instruction cost one device (modelled).

    Parameters
    ----------
    node_id : int
        The device.
    message_type : str
        For example ``train``.
    status : str
        ``ok``, ``away`` (never began), ``failed`` (the client gave an error) or ``late``.
    reason : str
        Why it is not ``ok``; else empty.
    bytes_down, bytes_up : int
        Content of the instruction and of the reply. A failed client sends nothing.
    download_seconds, train_seconds, upload_seconds : float
        Time of each part. A failed client is charged its download alone.
    energy_joules : float
        Energy of the three parts; waiting for others is not counted.
    """

    node_id: int
    message_type: str
    status: str
    reason: str = ""
    bytes_down: int = 0
    bytes_up: int = 0
    download_seconds: float = 0.0
    train_seconds: float = 0.0
    upload_seconds: float = 0.0
    energy_joules: float = 0.0

    @property
    def seconds(self) -> float:
        """From the start of the exchange until the server has the reply."""
        return self.download_seconds + self.train_seconds + self.upload_seconds


class VirtualClock:
    """Fate of a synchronous fleet: an exchange lasts as long as its slowest device.

    The work of a client is what its reply reports in a MetricRecord: ``flops-dense`` and
    ``flops-sparse``, none where absent. Queries cost nothing.

    Parameters
    ----------
    profiles : mapping of int to DeviceProfile
        The device of each node id.
    scheme : str
        Sparsity scheme, for the speed of sparse layers.
    seed : int
        Seed of the run; whether a device is there is drawn from (seed, exchange, node id).
    deadline : float, optional
        Seconds after which the server no longer waits. A later reply is lost; its device spends
        the full time and energy all the same.

    Attributes
    ----------
    now : float
        Virtual seconds since the start of the run. A resumed run sets it.
    exchanges : int
        Number of exchanges so far that took time; a resumed run, which asks its nodes anew who
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
        self._slowest = 0.0
        self._took_time = False
        self._timings: list[ClientTiming] = []
        self.now = 0.0
        self.exchanges = 0

    def admits(self, instruction: Message) -> str | None:
        """Return ``"device was away"`` if it is; see :class:`simulations.engine.fate.Fate`."""
        if not _is_timed(instruction):
            return None
        self._took_time = True
        node_id = instruction.metadata.dst_node_id
        draw = numpy_generator(self._seed, "availability", self.exchanges, node_id).random()
        return None if draw < self._profiles[node_id].availability else _AWAY

    def settle(self, instruction: Message, reply: Message) -> Message:
        """Charge the device; a reply after the deadline becomes an error reply."""
        if not _is_timed(instruction):
            return reply
        timing = self._timing(instruction, reply)
        self._timings.append(timing)
        self._slowest = max(self._slowest, min(timing.seconds, self._deadline))
        if timing.status == "late":
            return error_reply(instruction, NODE_UNAVAILABLE, timing.reason)
        return reply

    def end_of_exchange(self) -> None:
        """Advance ``now`` by the slowest device, at most by the deadline."""
        self.now += self._slowest
        self.exchanges += self._took_time
        self._slowest, self._took_time = 0.0, False

    def take_timings(self) -> list[ClientTiming]:
        """Return the timings since the last call, in message order, and forget them."""
        timings, self._timings = self._timings, []
        return timings

    def _timing(self, instruction: Message, reply: Message) -> ClientTiming:
        node_id, kind = instruction.metadata.dst_node_id, instruction.metadata.message_type
        if self.admits(instruction) is not None:
            return ClientTiming(node_id, kind, "away", _AWAY)
        profile = self._profiles[node_id]
        bytes_down = content_bytes(instruction.content)
        download = download_seconds(profile, bytes_down)
        failed = reply.has_error()
        bytes_up = 0 if failed else content_bytes(reply.content)
        upload = 0.0 if failed else upload_seconds(profile, bytes_up)
        train = 0.0 if failed else train_seconds(profile, _work(reply.content), self._scheme)
        status, reason = self._verdict(reply, download + train + upload)
        return ClientTiming(
            node_id,
            kind,
            status,
            reason,
            bytes_down=bytes_down,
            bytes_up=bytes_up,
            download_seconds=download,
            train_seconds=train,
            upload_seconds=upload,
            energy_joules=energy_joules(profile, train, download + upload),
        )

    def _verdict(self, reply: Message, seconds: float) -> tuple[str, str]:
        if reply.has_error():
            return "failed", reply.error.reason or "no reason given"
        if seconds > self._deadline:
            return "late", f"missed the deadline of {self._deadline:g} s"
        return "ok", ""


def _is_timed(instruction: Message) -> bool:
    return instruction.metadata.message_type.partition(".")[0] in _TIMED


def _work(content: RecordDict) -> Work:
    """Return the work that a reply reports."""
    metrics = [record for record in content.values() if isinstance(record, MetricRecord)]
    dense, sparse = (
        sum(float(record.get(key, 0.0)) for record in metrics)
        for key in ("flops-dense", "flops-sparse")
    )
    return Work(dense, sparse)
