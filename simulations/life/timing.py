"""What one instruction cost one device, as logs keep it."""

from dataclasses import dataclass


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
    start : float
        Virtual time at which the device began.
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
    start: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    download_seconds: float = 0.0
    train_seconds: float = 0.0
    upload_seconds: float = 0.0
    energy_joules: float = 0.0

    @property
    def seconds(self) -> float:
        """From the start until the server has the reply."""
        return self.download_seconds + self.train_seconds + self.upload_seconds
