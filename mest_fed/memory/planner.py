"""From a budget in bytes to a plan that fits: density and micro-batch.

Order of preference: the target density with the largest micro-batch, then smaller micro-batches
(they cost time, not accuracy, with GroupNorm), and only then a half, a quarter, an eighth of the
density. First form: later plans choose among recomputation and storage types as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mest_fed.errors import BudgetError
from mest_fed.memory.footprint import Footprint, TrainingShape, footprint
from mest_fed.memory.trace import ModelTrace
from mest_fed.sparsity import Method
from mest_fed.units import format_bytes

#: Densities that a tier may get, as shares of the target.
DENSITY_STEPS = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Plan:
    """How a device of some budget trains.

    Parameters
    ----------
    budget : int
        Bytes that training may add to the process.
    shape : TrainingShape
        Density, micro-batch and batch.
    footprint : Footprint
        Predicted bytes by part; its total is within the budget.
    """

    budget: int
    shape: TrainingShape
    footprint: Footprint

    @property
    def density(self) -> float:
        """Target density."""
        return self.shape.density

    @property
    def micro_batch(self) -> int:
        """Images in one forward and backward pass."""
        return self.shape.micro_batch

    def in_words(self) -> str:
        """Say the plan in one sentence."""
        parts = self.footprint.parts()
        largest = max(parts, key=lambda name: parts[name])
        share = "all" if self.density == 1 else f"{self.density:.1%}"
        return (
            f"Trains {share} of the sparse weights in batches of {self.shape.batch} "
            f"taken {self.micro_batch} at a time; predicted peak "
            f"{format_bytes(self.footprint.total)} of {format_bytes(self.budget)}, "
            f"{parts[largest] / max(1, self.footprint.total):.0%} of it {largest}."
        )


def candidates(
    trace: ModelTrace, method: Method, wish: TrainingShape, min_micro_batch: int = 1
) -> Iterator[Plan]:
    """Yield all plans, best first; each plan's budget is its own predicted peak."""
    steps = DENSITY_STEPS if trace.spec.groups else (1.0,)
    for step in steps:
        micro_batch = wish.batch
        while micro_batch >= min(min_micro_batch, wish.batch):
            shape = replace(wish, density=wish.density * step, micro_batch=micro_batch)
            bytes_by_part = footprint(trace, method, shape)
            yield Plan(bytes_by_part.total, shape, bytes_by_part)
            if micro_batch == 1:
                break
            micro_batch = -(-micro_batch // 2)


def make_plan(
    trace: ModelTrace,
    method: Method,
    wish: TrainingShape,
    budget: int,
    min_micro_batch: int = 1,
) -> Plan:
    """Return the best plan that fits a budget.

    Parameters
    ----------
    trace : ModelTrace
        Of the model.
    method : Method
        The sparse-training method; its peak is charged.
    wish : TrainingShape
        Target density and batch; its micro-batch is chosen here.
    budget : int
        Bytes that training may add to the process.
    min_micro_batch : int
        Smallest micro-batch allowed (batch statistics need several images).

    Raises
    ------
    BudgetError
        If nothing fits; the text says how many bytes would.
    """
    plans = list(candidates(trace, method, wish, min_micro_batch))
    for plan in plans:
        if plan.footprint.total <= budget:
            return replace(plan, budget=budget)
    smallest = min(plans, key=lambda plan: plan.footprint.total)
    raise BudgetError(
        f"memory budget = {format_bytes(budget)} fits no plan; the smallest needs "
        f"{smallest.footprint.total} bytes ({format_bytes(smallest.footprint.total)}, modelled: "
        f"density {smallest.density:.4g}, micro-batch {smallest.micro_batch})"
    )
