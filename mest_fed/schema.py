"""How a task ended, and why, and metrics: what the server, logs, summary and report share.

A task is one instruction to train, given to one device. It is ``ok``, or it failed for one
:class:`FailureKind`, which decides its :class:`TaskStatus`. Reasons are sentences for people beside
these values; no program reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    Parameters
    ----------
    name : str
        As in rows, summary and ``server.stop_when``: lower-case words joined by hyphens.
    higher_is_better : bool
        The direction.
    share : bool
        Whether it lies in [0, 1] and is shown as a percentage.
    """

    name: str
    higher_is_better: bool
    share: bool = False

    def is_better(self, value: float, than: float) -> bool:
        """Say whether a value is strictly better than another."""
        return value > than if self.higher_is_better else value < than

    def format(self, value: float | None) -> str:
        """Write a value for people, for example ``97.2%`` or ``0.0312``; a dash for None."""
        if value is None:
            return "\N{EM DASH}"
        return f"{value:.1%}" if self.share else f"{value:.4g}"


#: The mean loss, which every learning task has.
LOSS = Metric("loss", higher_is_better=False)
ACCURACY = Metric("accuracy", higher_is_better=True, share=True)


class TaskStatus(StrEnum):
    """How a task ended."""

    OK = "ok"
    """Its update was accepted."""
    FAILED = "failed"
    """The device ended without a result."""
    REJECTED = "rejected"
    """The server refused what the device sent."""
    AWAY = "away"
    """The device could not be asked."""
    DECLINED = "declined"
    """The device was there, and might not train then, by what its owner allows."""
    LATE = "late"
    """The server had stopped waiting."""
    DROPPED = "dropped"
    """The device went away before its reply was sent."""
    SURPLUS = "surplus"
    """Enough other devices were faster."""


def in_words(counts: Mapping[TaskStatus, int]) -> str:
    """Write how many tasks ended in which way, for example ``9 ok, 1 away``; empty if none did."""
    return ", ".join(f"{counts[each]:,} {each}" for each in TaskStatus if counts.get(each))


class FailureKind(StrEnum):
    """Why a task gave no update. Each kind has one :attr:`status`."""

    AWAY = "away"
    BATTERY_LOW = "battery-low"
    DROPPED_OUT = "dropped-out"
    WENT_AWAY = "went-away"
    BATTERY_EMPTY = "battery-empty"
    UPLOAD_LOST = "upload-lost"
    DEADLINE = "deadline"
    BUSY = "busy"
    OCCUPIED = "occupied"
    NO_REPLY = "no-reply"
    OVER_BUDGET = "over-budget"
    OUT_OF_MEMORY = "out-of-memory"
    NOT_FINITE = "not-finite"
    CLIENT_ERROR = "client-error"
    WORKER_DIED = "worker-died"
    UPDATE_REJECTED = "update-rejected"
    SURPLUS = "surplus"

    @property
    def status(self) -> TaskStatus:
        """How a task ends that fails for this."""
        return _STATUS[self]

    @property
    def label(self) -> str:
        """What reports call it."""
        return _LABELS[self]

    @property
    def ordinary(self) -> bool:
        """Whether it is a device's own answer that it may not train now: nobody need look at it."""
        return self in (FailureKind.BUSY, FailureKind.BATTERY_LOW)

    def explain(self, reason: str | None) -> str:
        """Say for people why a task failed: its own reason where the kind says too little."""
        return (self in _OPEN and reason) or self.label


_STATUS = {
    FailureKind.AWAY: TaskStatus.AWAY,
    FailureKind.BATTERY_LOW: TaskStatus.AWAY,
    FailureKind.DROPPED_OUT: TaskStatus.DROPPED,
    FailureKind.WENT_AWAY: TaskStatus.DROPPED,
    FailureKind.BATTERY_EMPTY: TaskStatus.DROPPED,
    FailureKind.UPLOAD_LOST: TaskStatus.DROPPED,
    FailureKind.DEADLINE: TaskStatus.LATE,
    FailureKind.BUSY: TaskStatus.DECLINED,
    FailureKind.OCCUPIED: TaskStatus.LATE,
    FailureKind.NO_REPLY: TaskStatus.LATE,
    FailureKind.OVER_BUDGET: TaskStatus.FAILED,
    FailureKind.OUT_OF_MEMORY: TaskStatus.FAILED,
    FailureKind.NOT_FINITE: TaskStatus.FAILED,
    FailureKind.CLIENT_ERROR: TaskStatus.FAILED,
    FailureKind.WORKER_DIED: TaskStatus.FAILED,
    FailureKind.UPDATE_REJECTED: TaskStatus.REJECTED,
    FailureKind.SURPLUS: TaskStatus.SURPLUS,
}

_LABELS = {
    FailureKind.AWAY: "the device was away",
    FailureKind.BATTERY_LOW: "the battery was too low to begin",
    FailureKind.DROPPED_OUT: "the device dropped out",
    FailureKind.WENT_AWAY: "the device went away during the task",
    FailureKind.BATTERY_EMPTY: "the battery ran empty",
    FailureKind.UPLOAD_LOST: "the upload broke off",
    FailureKind.DEADLINE: "the reply missed the deadline",
    FailureKind.BUSY: "the device might not train: in use, hot or without power",
    FailureKind.OCCUPIED: "the device was busy with an earlier task until the deadline",
    FailureKind.NO_REPLY: "no reply came in time",
    FailureKind.OVER_BUDGET: "training was over the memory budget",
    FailureKind.OUT_OF_MEMORY: "training ran out of memory",
    FailureKind.NOT_FINITE: "the loss was not finite",
    FailureKind.CLIENT_ERROR: "the client raised an error",
    FailureKind.WORKER_DIED: "the process of the client died",
    FailureKind.UPDATE_REJECTED: "the update was not acceptable",
    FailureKind.SURPLUS: "enough other devices were faster",
}

#: Failures of which the reason says more than the kind does.
_OPEN = (FailureKind.CLIENT_ERROR, FailureKind.WORKER_DIED, FailureKind.UPDATE_REJECTED)

#: Flower's code of an error reply of a ClientApp that raised.
RAISED = 2
#: Codes of the error replies that say why a task failed. The small ones are Flower's, which it
#: does not publish: the ClientApp raised, or could not be loaded; the process of the client died;
#: the upload of a reply broke off; the time was over; the device is not online. The large ones are
#: ours: a client sends them itself, and Flower passes them on.
FAILURE_CODES = {
    RAISED: FailureKind.CLIENT_ERROR,
    1: FailureKind.CLIENT_ERROR,
    3: FailureKind.UPLOAD_LOST,
    4: FailureKind.NO_REPLY,
    5: FailureKind.AWAY,
    8: FailureKind.WORKER_DIED,
    1001: FailureKind.OVER_BUDGET,
    1002: FailureKind.OUT_OF_MEMORY,
    1003: FailureKind.NOT_FINITE,
    1004: FailureKind.WENT_AWAY,
    1005: FailureKind.BATTERY_LOW,
    1006: FailureKind.BUSY,
    1007: FailureKind.DEADLINE,
    1008: FailureKind.OCCUPIED,
}


def failure_of_code(code: int) -> FailureKind:
    """Return why a task failed whose error reply has a code."""
    return FAILURE_CODES.get(code, FailureKind.CLIENT_ERROR)


def code_of_failure(kind: FailureKind) -> int:
    """Return the code under which an error reply says why a task failed.

    Raises
    ------
    KeyError
        If no error reply says so: the server finds it out by itself.
    """
    return next(code for code, known in FAILURE_CODES.items() if known is kind)
