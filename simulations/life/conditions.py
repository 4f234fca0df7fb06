"""What an instruction costs a device, and whether its reply is in time. All of it is modelled."""

from dataclasses import dataclass

from flwr.app import Message, MetricRecord, RecordDict

from mest_fed.devices import (
    DeviceProfile,
    Work,
    download_seconds,
    energy_joules,
    train_seconds,
    upload_seconds,
)
from mest_fed.wire.size import content_bytes
from simulations.engine.fate import Settled
from simulations.engine.flower_internals import NODE_UNAVAILABLE, error_reply
from simulations.life.timing import ClientTiming


@dataclass(frozen=True)
class NoTime:
    """Conditions of what costs nothing: see :class:`simulations.engine.fate.Conditions`."""

    number: int = 0
    refusal: str | None = None

    def at_least(self, instruction: Message) -> float:
        """Return 0."""
        return 0.0

    def settle(self, instruction: Message, reply: Message) -> Settled:
        """Let the reply through."""
        return Settled(reply)


@dataclass(frozen=True)
class DeviceConditions:
    """The circumstances of one instruction: see :class:`simulations.engine.fate.Conditions`.

    Parameters
    ----------
    number : int
        Of the instruction.
    profile : DeviceProfile
        The device.
    scheme : str
        Sparsity scheme, for the speed of sparse layers.
    start : float
        Virtual time at which the device begins.
    within : float
        Seconds from then on that the server waits.
    refusal : str or None
        Why the device does not even begin.
    """

    number: int
    profile: DeviceProfile
    scheme: str
    start: float
    within: float
    refusal: str | None = None

    def at_least(self, instruction: Message) -> float:
        """Return the time of the download: nothing arrives before it is over."""
        if self.refusal is not None:
            return 0.0
        download = download_seconds(self.profile, content_bytes(instruction.content))
        return min(self.within, download)

    def settle(self, instruction: Message, reply: Message) -> Settled:
        """Charge the device; a reply after the deadline becomes an error reply."""
        timing = self._timing(instruction, reply)
        if timing.status == "late":
            late = error_reply(instruction, NODE_UNAVAILABLE, timing.reason)
            return Settled(late, self.within, timing, busy_seconds=timing.seconds)
        return Settled(reply, timing.seconds, timing)

    def _timing(self, instruction: Message, reply: Message) -> ClientTiming:
        node_id, kind = instruction.metadata.dst_node_id, instruction.metadata.message_type
        if self.refusal is not None:
            return ClientTiming(node_id, kind, "away", self.refusal, start=self.start)
        profile = self.profile
        bytes_down = content_bytes(instruction.content)
        download = download_seconds(profile, bytes_down)
        failed = reply.has_error()
        bytes_up = 0 if failed else content_bytes(reply.content)
        upload = 0.0 if failed else upload_seconds(profile, bytes_up)
        train = 0.0 if failed else train_seconds(profile, _work(reply.content), self.scheme)
        status, reason = self._verdict(reply, download + train + upload)
        return ClientTiming(
            node_id,
            kind,
            status,
            reason,
            start=self.start,
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
        if seconds > self.within:
            return "late", f"missed the deadline of {self.within:g} s"
        return "ok", ""


def _work(content: RecordDict) -> Work:
    """Return the work that a reply reports."""
    metrics = [record for record in content.values() if isinstance(record, MetricRecord)]
    dense, sparse = (
        sum(float(record.get(key, 0.0)) for record in metrics)
        for key in ("flops-dense", "flops-sparse")
    )
    return Work(dense, sparse)
