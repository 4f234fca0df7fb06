"""What of a plan decides its memory."""

from dataclasses import dataclass, field

from mest_fed.errors import not_allowed
from mest_fed.memory.activations import Savings
from mest_fed.sparsity import DISTRIBUTIONS


@dataclass(frozen=True)
class TrainingShape:
    """How a device trains, as far as memory is concerned.

    Parameters
    ----------
    density : float
        Target density of the sparse layers (ignored for a dense model).
    distribution : str
        How density spreads over layers.
    micro_batch : int
        Images in one forward and backward pass.
    batch : int
        Images in one optimizer step.
    momentum : bool
        Whether the optimizer keeps a momentum.
    savings : Savings
        What is recomputed, packed, consumed and frozen.

    Raises
    ------
    InputError
        If a number is out of range, the micro-batch larger than the batch, or the distribution
        unknown.
    """

    density: float
    distribution: str
    micro_batch: int
    batch: int
    momentum: bool = True
    savings: Savings = field(default_factory=Savings)

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise not_allowed("density", self.density, "a number in (0, 1]")
        if self.distribution not in DISTRIBUTIONS:
            raise not_allowed("distribution", self.distribution, DISTRIBUTIONS)
        if self.batch < 1:
            raise not_allowed("batch", self.batch, "a whole number of at least 1")
        if not 1 <= self.micro_batch <= self.batch:
            raise not_allowed("micro_batch", self.micro_batch, f"1 to {self.batch} (the batch)")
