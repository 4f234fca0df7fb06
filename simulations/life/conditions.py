"""The circumstances of one instruction on one device, and what comes of it. All modelled."""

import math
from dataclasses import dataclass, replace

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

#: A device's parts of a round: seconds to download, train and upload.
Parts = tuple[float, float, float]


@dataclass(frozen=True)
class Untimed:
    """Of an instruction that costs nothing, such as a query."""

    refusal: str | None = None

    def settle(self, instruction: Message, reply: Message) -> Settled:
        """Return the reply, at once."""
        del instruction
        return Settled(reply, 0.0, None, True)


@dataclass(frozen=True)
class DeviceConditions:
    """Everything about a device that was drawn for one instruction; see :class:`Conditions`.

    Parameters
    ----------
    device : DeviceProfile
        As fast as it is this time; without sources.
    scheme : str
        Sparsity scheme, for the speed of sparse layers.
    start : float
        Virtual seconds at which it was instructed.
    within : float
        Seconds that the server waits at most.
    refusal : str or None
        Why it does not even begin.
    downloads : bool
        Whether a device that refuses finds out only after the download.
    drops_at : float or None
        Share of its round after which it drops out.
    stays : float
        Seconds after which it goes away.
    joules : float
        What it can spend before its battery is empty; infinite while it is plugged in.
    battery : float or None
        Share of a full charge at the start.
    """

    device: DeviceProfile
    scheme: str
    start: float
    within: float = math.inf
    refusal: str | None = None
    downloads: bool = False
    drops_at: float | None = None
    stays: float = math.inf
    joules: float = math.inf
    battery: float | None = None

    def settle(self, instruction: Message, reply: Message) -> Settled:
        """Charge the device. A reply that is late or lost becomes an error reply.

        The work of a client is what its reply reports in a MetricRecord: ``flops-dense`` and
        ``flops-sparse``, none where absent. A failed client is charged its download alone.
        """
        bare = ClientTiming(
            instruction.metadata.dst_node_id,
            instruction.metadata.message_type,
            "ok",
            start=self.start,
            battery=self.battery,
        )
        if self.refusal is not None and not self.downloads:
            timing = replace(bare, status="away", reason=self.refusal)
            return self._lost(instruction, timing, 0.0)
        bytes_down = content_bytes(instruction.content)
        failed = self.refusal is not None or reply.has_error()
        bytes_up = 0 if failed else content_bytes(reply.content)
        whole = self._whole(bytes_down, None if failed else reply.content, bytes_up)
        left_after, why = self._leaves(whole)
        parts = _until(whole, left_after)
        done = parts == whole
        timing = replace(
            bare,
            bytes_down=bytes_down,
            bytes_up=bytes_up if done else 0,
            download_seconds=parts[0],
            train_seconds=parts[1],
            upload_seconds=parts[2],
            energy_joules=energy_joules(self.device, parts[1], parts[0] + parts[2]),
        )
        trained = parts[:2] == whole[:2]
        if timing.seconds > self.within:
            timing = replace(
                timing, status="late", reason=f"missed the deadline of {self.within:g} s"
            )
            return self._lost(instruction, timing, self.within, trained=trained)
        if not done:
            timing = replace(timing, status="dropped", reason=why)
            return self._lost(instruction, timing, timing.seconds, trained=trained)
        if self.refusal is not None:
            timing = replace(timing, status="failed", reason=self.refusal)
            return self._lost(instruction, timing, timing.seconds)
        if failed:
            reason = reply.error.reason or "no reason given"
            return Settled(
                reply, timing.seconds, replace(timing, status="failed", reason=reason), True
            )
        return Settled(reply, timing.seconds, timing, True)

    def _whole(self, bytes_down: int, content: RecordDict | None, bytes_up: int) -> Parts:
        """Return the parts of a round in which nothing comes between."""
        download = download_seconds(self.device, bytes_down)
        if content is None:
            return download, 0.0, 0.0
        train = train_seconds(self.device, _work(content), self.scheme)
        return download, train, upload_seconds(self.device, bytes_up)

    def _leaves(self, whole: Parts) -> tuple[float, str]:
        """Return after how many seconds the device is lost first, and to what."""
        dropout = math.inf if self.drops_at is None else self.drops_at * sum(whole)
        return min(
            (dropout, "device dropped out"),
            (self.stays, "device went away"),
            (_lasts(self.device, whole, self.joules), "battery ran empty"),
        )

    def _lost(
        self, instruction: Message, timing: ClientTiming, seconds: float, *, trained: bool = False
    ) -> Settled:
        reply = error_reply(instruction, NODE_UNAVAILABLE, timing.reason)
        return Settled(reply, seconds, timing, trained)


def _until(whole: Parts, seconds: float) -> Parts:
    """Cut parts off after some seconds."""
    download, train, upload = whole
    if seconds >= download + train + upload:
        return whole
    return (
        min(download, seconds),
        min(train, max(0.0, seconds - download)),
        max(0.0, seconds - (download + train)),
    )


def _lasts(device: DeviceProfile, whole: Parts, joules: float) -> float:
    """Return after how many seconds of a round so much energy is spent."""
    passed = 0.0
    watts = (device.radio_watts, device.compute_watts, device.radio_watts)
    for seconds, power in zip(whole, watts, strict=True):
        if power * seconds > joules:
            return passed + joules / power
        joules -= power * seconds
        passed += seconds
    return math.inf


def _work(content: RecordDict) -> Work:
    """Return the work that a reply reports."""
    metrics = [record for record in content.values() if isinstance(record, MetricRecord)]
    dense, sparse = (
        sum(float(record.get(key, 0.0)) for record in metrics)
        for key in ("flops-dense", "flops-sparse")
    )
    return Work(dense, sparse)
