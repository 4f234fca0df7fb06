"""A case of memory.py: what is trained, how, and on which side."""

from dataclasses import asdict, dataclass, field
from typing import Any

from mest_fed.memory import MemoryOptions


@dataclass(frozen=True)
class Case:
    """What one process trains.

    Parameters
    ----------
    side : str
        ``dense``: torch's own operators and optimizer. ``ours``: what is said here.
    model, norm, width
        The model.
    scheme : str
        ``dense`` for ours without sparsity.
    density : float
        Active weights / weights.
    batch, micro_batch : int
        Images.
    momentum : bool
        Whether SGD keeps one.
    memory : MemoryOptions
        Of ours.
    steps : int
        Timed steps, the first included.
    threads : int
        torch's.
    optimizer : str
        Of compiled steps; elsewhere it is SGD.
    """

    side: str = "ours"
    model: str = "resnet32"
    norm: str = "batch"
    width: float = 2.0
    scheme: str = "block"
    density: float = 0.1
    batch: int = 64
    micro_batch: int = 64
    momentum: bool = True
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    steps: int = 3
    threads: int = 1
    optimizer: str = "sgd"

    @classmethod
    def of(cls, table: dict[str, Any]) -> "Case":
        """Read a case back."""
        return cls(**{**table, "memory": MemoryOptions(**table["memory"])})

    def table(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @property
    def name(self) -> str:
        """Return a short name."""
        memory = self.memory
        parts = [self.model, self.norm, self.scheme, f"{self.density:g}", f"{self.micro_batch}"]
        parts += [memory.recompute, memory.saved]
        parts += ["consume"] if memory.release_gradients else []  # rows keep their names
        parts += [] if self.momentum else ["plain"]
        parts += [f"frozen {memory.frozen}"] if memory.frozen else []
        return " ".join(parts)
