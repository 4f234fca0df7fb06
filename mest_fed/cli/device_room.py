"""What a device has left beside its system and Flower's node, and whether a budget fits.

``mest-fed devices``, ``plan --device`` and ``client`` say it in the same words, by the same
arithmetic (:func:`mest_fed.system.limits.left_within`).
"""

from dataclasses import dataclass
from typing import Any

from mest_fed.cli.baseline import RECORDED, Baseline
from mest_fed.devices import DeviceProfile
from mest_fed.errors import InputError
from mest_fed.system.limits import MARGIN, left_within
from mest_fed.units import format_bytes


@dataclass(frozen=True)
class DeviceRoom:
    """A budget beside the node on a device whose profile says what its system takes.

    Parameters
    ----------
    profile : DeviceProfile
        The device.
    budget : int
        Bytes that training may add.
    baseline : Baseline
        What Flower's node takes before: as recorded, or as measured on this machine.
    margin : float
        Share of the memory that stays free.
    """

    profile: DeviceProfile
    budget: int
    baseline: Baseline = RECORDED
    margin: float = MARGIN

    @property
    def known(self) -> bool:
        """Whether the profile says what the system takes."""
        return self.profile.system_bytes is not None

    @property
    def memory(self) -> int:
        """Bytes that the system leaves to programs."""
        return self.profile.memory_bytes - (self.profile.system_bytes or 0)

    @property
    def left(self) -> int:
        """Bytes that are left for training; below 0, so many are lacking before it begins."""
        return left_within(self.memory, self.baseline.together, self.margin)

    @property
    def fits(self) -> bool:
        """Whether the budget fits."""
        return self.budget <= self.left

    def as_table(self) -> dict[str, Any] | None:
        """Return the numbers as plain values; None where the profile does not say enough."""
        if not self.known:
            return None
        return {
            "memory_bytes": self.profile.memory_bytes,
            "system_bytes": self.profile.system_bytes,
            "margin": self.margin,
            "node_bytes": self.baseline.together,
            "left_bytes": self.left,
            "fits": self.fits,
            "source": self.baseline.source,
        }

    def short(self) -> str:
        """Say what is left, as a cell of a table."""
        if not self.known:
            return "?"
        return format_bytes(self.left) if self.left > 0 else "none"

    def in_words(self) -> str:
        """Say what the node takes, what is left, and whether the budget fits."""
        title, memory = self.profile.title, format_bytes(self.profile.memory_bytes)
        if not self.known:
            return (
                f"What a real {title} leaves for training is not known: its profile does not say "
                "what the system takes of its memory (system_bytes)."
            )
        system = format_bytes(self.profile.memory_bytes - self.memory)
        kind = self.profile.sources["system_bytes"].partition(":")[0]
        return (
            f"A real {title} has {memory}: its system takes {system} ({kind}), Flower's node "
            f"with torch {format_bytes(self.baseline.together)} before training "
            f"({self.baseline.source}), and {self.margin:.0%} of what the system leaves stay free. "
            f"{self._verdict()}."
        )

    def _verdict(self) -> str:
        budget = f"the budget of {format_bytes(self.budget)}"
        if self.left <= 0:
            lacking = f"{format_bytes(-self.left)} are lacking before training begins"
            return f"Nothing is left, {lacking}: {budget} does not fit"
        does = "fits" if self.fits else "does not fit"
        return f"{format_bytes(self.left)} are left for training: {budget} {does}"

    def check(self) -> None:
        """Check that the budget fits, where the profile says what the system takes.

        Raises
        ------
        InputError
            If it does not.
        """
        if self.known and not self.fits:
            most = f"--budget up to {format_bytes(self.left)}, " if self.left > 0 else ""
            raise InputError(
                f"{self.in_words()} Allowed: {most}a --device with more memory, or --memory-limit "
                "BYTES if this machine has more than the profile says"
            )
