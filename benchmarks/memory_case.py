"""A case of memory.py: what is trained, how, and on which side."""

from dataclasses import asdict, dataclass, field
from typing import Any

from mest_fed.catalogue import Engine
from mest_fed.memory import MemoryOptions
from mest_fed.nn.optimizer_settings import OptimizerSettings


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
        Images; of compiled steps ``micro_batch`` is also the most that a group has.
    momentum : bool
        Whether SGD keeps one.
    memory : MemoryOptions
        Of ours.
    steps : int
        Timed steps, the first included.
    threads : int
        torch's.
    optimizer : str
        Of ours.
    engine : str
        What computes steps of ours: ``torch``, or ``compiled`` programs.
    storage : str
        Of planes of compiled steps: ``fp32`` or ``bf16``.
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
    engine: str = Engine.TORCH.value
    storage: str = "fp32"

    @classmethod
    def of(cls, table: dict[str, Any]) -> "Case":
        """Read a case back."""
        return cls(**{**table, "memory": MemoryOptions(**table["memory"])})

    def table(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @property
    def is_compiled(self) -> bool:
        """Whether programs compute its steps."""
        return self.side == "ours" and self.engine == Engine.COMPILED

    @property
    def settings(self) -> OptimizerSettings:
        """The optimizer of ours."""
        settings = OptimizerSettings(1e-3, name=self.optimizer)
        return settings if self.momentum else settings.without_momentum()

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
