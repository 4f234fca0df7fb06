"""What an instruction costs a device, and whether its reply arrives. All of it is modelled."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from flwr.app import Message, MessageType, MetricRecord, RecordDict

from mest_fed.devices import (
    DeviceProfile,
    Work,
    download_seconds,
    energy_joules,
    train_seconds,
    upload_seconds,
)
from mest_fed.schema import FailureKind, TaskStatus, failure_of_code
from mest_fed.server.flower_internals import NODE_UNAVAILABLE, error_reply
from mest_fed.server.round_record import ClientTiming
from mest_fed.simulation.engine.interfaces import TaskResult
from mest_fed.wire.records import EXAMPLES, content_bytes, read_work, summed


class Parts(NamedTuple):
    """Seconds of each part of a task, in the order in which a device comes to them."""

    download: float
    setup: float = 0.0
    train: float = 0.0
    upload: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self)

    @property
    def compute(self) -> float:
        """Those in which the device computes."""
        return self.setup + self.train

    @property
    def radio(self) -> float:
        """Those in which it receives or sends."""
        return self.download + self.upload


@dataclass(frozen=True)
class NoTime:
    """TaskConditions of what costs nothing: see :class:`TaskConditions`."""

    number: int = 0
    refusal: str | None = None

    def at_least(self, instruction: Message) -> float:
        """Return 0."""
        return 0.0

    def resolve(self, instruction: Message, reply: Message) -> TaskResult:
        """Let the reply through."""
        return TaskResult(reply)


@dataclass(frozen=True)
class DeviceConditions:
    """The circumstances of one instruction: see :class:`TaskConditions`.

    Parameters
    ----------
    number : int
        Of the instruction.
    device : DeviceProfile
        The device, as fast as it is this time; without sources.
    scheme : str
        Sparsity scheme, for the speed of sparse layers.
    start : float
        Virtual time at which the device begins.
    within : float
        Seconds from then on that the server waits.
    refusal : str or None
        Why the device does not train.
    refused_for : FailureKind or None
        The same, as a value.
    noticed : float or None
        Seconds until the server knows of the refusal; None if that takes the download, as when
        memory turns out to be short.
    drops_at : float or None
        Share of its round after which it drops out.
    stays : float
        Seconds after which it goes away.
    joules : float
        What it can spend before its battery is empty; infinite while it is plugged in.
    battery : float or None
        Share of a full charge at the start.
    flops_per_example : float
        Operations of a train task for each example that a reply reports, where it does not report
        its work; an evaluate task takes a third.
    starts_process : bool
        Whether the device starts a process for the instruction.
    """

    number: int
    device: DeviceProfile
    scheme: str
    start: float
    within: float = math.inf
    refusal: str | None = None
    refused_for: FailureKind | None = None
    noticed: float | None = None
    drops_at: float | None = None
    stays: float = math.inf
    joules: float = math.inf
    battery: float | None = None
    flops_per_example: float = 0.0
    starts_process: bool = False

    def at_least(self, instruction: Message) -> float:
        """Return the time of the download, or until the device is lost within it."""
        if self.noticed is not None:
            return min(self.within, self.noticed)
        whole = Parts(download_seconds(self.device, content_bytes(instruction.content)))
        return min(self.within, whole.total, self._lost_after(whole)[0])

    def resolve(self, instruction: Message, reply: Message) -> TaskResult:
        """Charge the device. What is late or lost becomes an error reply.

        The work of a client is what its reply reports in a MetricRecord (see
        :func:`~mest_fed.wire.records.read_work`); where it reports none, ``flops_per_example``
        times its ``num-examples``. A failed client is charged its download alone.
        """
        timing = ClientTiming(
            instruction.metadata.dst_node_id,
            instruction.metadata.message_type,
            start=self.start,
            battery=self.battery,
        )
        if self.noticed is not None:
            timing = replace(
                timing, failure=self.refused_for or FailureKind.AWAY, reason=self.refusal or ""
            )
            return self._without(instruction, timing, min(self.within, self.noticed))
        whole = self._whole(instruction, reply)
        lost_after, loss, kind = self._lost_after(whole)
        parts = _until(whole, lost_after)
        timing = replace(
            timing,
            bytes_down=content_bytes(instruction.content),
            download_seconds=parts.download,
            setup_seconds=parts.setup,
            train_seconds=parts.train,
            upload_seconds=parts.upload,
            energy_joules=energy_joules(self.device, parts.compute, parts.radio),
        )
        if parts != whole:
            timing = replace(timing, failure=kind, reason=loss)
        elif reply.has_error():
            reason = reply.error.reason or "no reason given"
            kind = self.refused_for or failure_of_code(reply.error.code)
            timing = replace(timing, failure=kind, reason=reason)
        else:
            timing = replace(timing, bytes_up=content_bytes(reply.content))
        if timing.seconds > self.within:
            reason, kind = f"missed the deadline of {self.within:g} s", FailureKind.DEADLINE
            if self.within <= 0:
                reason = "was busy with an earlier instruction until the deadline"
                kind = FailureKind.OCCUPIED
            timing = replace(timing, failure=kind, reason=reason)
        if timing.status in (TaskStatus.OK, TaskStatus.FAILED):
            return TaskResult(reply, timing.seconds, timing)
        trained = parts[:3] == whole[:3]
        return self._without(
            instruction, timing, min(self.within, timing.seconds), keeps_state=trained
        )

    def _whole(self, instruction: Message, reply: Message) -> Parts:
        """Return the parts of a round in which nothing comes between."""
        download = download_seconds(self.device, content_bytes(instruction.content))
        if reply.has_error():
            return Parts(download)
        # Forward and backward against forward alone.
        passes = 1 if instruction.metadata.message_type.startswith(MessageType.TRAIN) else 1 / 3
        work = _work(reply.content, passes * self.flops_per_example)
        return Parts(
            download,
            self.device.message_seconds if self.starts_process else 0.0,
            train_seconds(self.device, work, self.scheme),
            upload_seconds(self.device, content_bytes(reply.content)),
        )

    def _lost_after(self, whole: Parts) -> tuple[float, str, FailureKind]:
        """Return after how many seconds a device is lost first, and why."""
        dropout = math.inf if self.drops_at is None else self.drops_at * whole.total
        return min(
            (dropout, "device dropped out", FailureKind.DROPPED_OUT),
            (self.stays, "device went away", FailureKind.WENT_AWAY),
            (
                _lasts(self.device, whole, self.joules),
                "battery ran empty",
                FailureKind.BATTERY_EMPTY,
            ),
        )

    def _without(
        self,
        instruction: Message,
        timing: ClientTiming,
        seconds: float,
        *,
        keeps_state: bool = False,
    ) -> TaskResult:
        """Return what comes of an instruction whose reply does not reach the server."""
        reply = error_reply(instruction, NODE_UNAVAILABLE, timing.reason)
        return TaskResult(reply, seconds, timing, keeps_state, busy_seconds=timing.seconds)


def _until(whole: Parts, seconds: float) -> Parts:
    """Cut off what comes after some seconds."""
    if seconds >= whole.total:
        return whole
    passed, parts = 0.0, []
    for part in whole:
        parts.append(min(part, max(0.0, seconds - passed)))
        passed += part
    return Parts(*parts)


def _lasts(device: DeviceProfile, whole: Parts, joules: float) -> float:
    """Return after how many seconds of a round so much energy is spent."""
    passed = 0.0
    radio, compute = device.radio_watts, device.compute_watts
    watts = (radio, compute, compute, radio)
    for seconds, power in zip(whole, watts, strict=True):
        if power * seconds > joules:
            return passed + joules / power
        joules -= power * seconds
        passed += seconds
    return math.inf


def _work(content: RecordDict, flops_per_example: float) -> Work:
    """Return the work that a reply reports, by itself or by its number of examples."""
    work = read_work(content)
    if work is None:
        metrics = (record for record in content.values() if isinstance(record, MetricRecord))
        work = Work(dense_flops=flops_per_example * summed(metrics, EXAMPLES))
    return work
