"""What one instruction cost one device, as logs keep it."""

from dataclasses import dataclass

from mest_fed.schema import FailureKind, TaskStatus


@dataclass(frozen=True)
class ClientTiming:
    """What one instruction cost one device (modelled).

    The device downloads from its start on, then trains, then uploads; times are those that it came
    to, so that a device that dropped out ends within one of the three.

    Parameters
    ----------
    node_id : int
        The device.
    message_type : str
        For example ``train``.
    failure : FailureKind or None
        Why the device gave no result; None if it gave one.
    reason : str
        The same for people; empty if it gave one.
    start : float
        Virtual time at which the device began.
    bytes_down, bytes_up : int
        Content of the instruction and of the reply. A client that failed or dropped out sends
        nothing.
    download_seconds, train_seconds, upload_seconds : float
        Time of each part. A failed client is charged its download alone.
    energy_joules : float
        Energy of the three parts; waiting for others is not counted.
    battery : float or None
        Share of a full charge at the start; None on mains power, or where nobody counts.
    """

    node_id: int
    message_type: str
    failure: FailureKind | None = None
    reason: str = ""
    start: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    download_seconds: float = 0.0
    train_seconds: float = 0.0
    upload_seconds: float = 0.0
    energy_joules: float = 0.0
    battery: float | None = None

    @property
    def status(self) -> TaskStatus:
        """How it ended."""
        return TaskStatus.OK if self.failure is None else self.failure.status

    @property
    def seconds(self) -> float:
        """From the instruction until the device is done with it."""
        return self.download_seconds + self.train_seconds + self.upload_seconds
