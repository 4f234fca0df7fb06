"""What a device has left beside its system and a node, Flower's or a lean one; if a budget fits.

``mest-fed devices``, ``plan --device`` and ``client`` say it in the same words, by the same
arithmetic (:func:`mest_fed.system.limits.left_within`).
"""

from dataclasses import dataclass
from typing import Any

from mest_fed.cli.baseline import LEAN_SOURCE, RECORDED, RECORDED_LEAN, Baseline
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
        What Flower's node takes before: as recorded, or as measured on this machine. What a lean
        node takes is the profile's, or as recorded.
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
        """Bytes left beside Flower's node; below 0, so many are lacking before training begins."""
        return left_within(self.memory, self.baseline.together, self.margin)

    @property
    def fits(self) -> bool:
        """Whether the budget fits beside Flower's node."""
        return self.budget <= self.left

    @property
    def lean(self) -> int:
        """Bytes that a lean node takes before training."""
        return self.profile.node_bytes or RECORDED_LEAN

    @property
    def left_by_lean(self) -> int:
        """Bytes that are left beside a lean node; see :attr:`left`."""
        return left_within(self.memory, self.lean, self.margin)

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
            "lean": {
                "node_bytes": self.lean,
                "left_bytes": self.left_by_lean,
                "fits": self.budget <= self.left_by_lean,
                "source": self._lean_source,
            },
        }

    def short(self, *, lean: bool = False) -> str:
        """Say what is left beside Flower's node, or a lean one, as a cell of a table."""
        if not self.known:
            return "?"
        left = self.left_by_lean if lean else self.left
        return format_bytes(left) if left > 0 else "none"

    def in_words(self) -> str:
        """Say what each kind of node takes, what it leaves, and whether the budget fits."""
        title, memory = self.profile.title, format_bytes(self.profile.memory_bytes)
        if not self.known:
            return (
                f"What a real {title} leaves for training is not known: its profile does not say "
                "what the system takes of its memory (system_bytes)."
            )
        system = format_bytes(self.profile.memory_bytes - self.memory)
        kind = self.profile.sources["system_bytes"].partition(":")[0]
        return (
            f"A real {title} has {memory}: its system takes {system} ({kind}), and "
            f"{self.margin:.0%} of what that leaves stay free. Flower's node with torch takes "
            f"{format_bytes(self.baseline.together)} before training ({self.baseline.source}): "
            f"{self._verdict(self.left)}. A lean node (mest-fed node) takes "
            f"{format_bytes(self.lean)} ({self._lean_source}): {self._verdict(self.left_by_lean)}."
        )

    @property
    def _lean_source(self) -> str:
        if self.profile.node_bytes:
            return self.profile.sources["node_bytes"].partition(":")[0]
        return LEAN_SOURCE

    def _verdict(self, left: int) -> str:
        budget = f"the budget of {format_bytes(self.budget)}"
        if left <= 0:
            lacking = f"{format_bytes(-left)} are lacking before training begins"
            return f"{lacking}, and {budget} does not fit"
        does = "fits" if self.budget <= left else "does not fit"
        return f"{format_bytes(left)} are left for training, and {budget} {does}"

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
                f"{self.in_words()} Allowed: {most}a --device with more memory, --memory-limit "
                "BYTES if this machine has more than the profile says, or mest-fed node instead of "
                "mest-fed client"
            )
