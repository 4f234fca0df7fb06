"""What memory a node has to train in: what it was given, what its limits leave, what failed."""

from dataclasses import dataclass, field

from mest_fed.errors import BudgetError, InputError, OverBudgetError
from mest_fed.link.description import RunDescription
from mest_fed.system.allocator import release_freed
from mest_fed.system.limits import (
    MARGIN,
    left_within,
    limit_of_process,
    no_plan_in,
    too_tight,
    usage,
)
from mest_fed.system.peak_meter import PeakMeter, read_counters
from mest_fed.system.proc import resident_bytes
from mest_fed.units import format_bytes

#: Share of a plan's peak that the next plan may have, after there was no memory for it.
_NEXT = 0.75
#: A plan that was too large is tried again where so many times its peak are there.
_AGAIN = 1.1


@dataclass
class Room:
    """Decides the budget with which a node registers.

    Parameters
    ----------
    budget, memory_limit : int
        That the node was given; 0 for none. Without either the server knows its profile's.

    alone : bool
        Whether the process plays this node alone, and measures no other.

    Attributes
    ----------
    asked : int
        The budget of the present plan; 0 for the profile's.
    """

    budget: int = 0
    memory_limit: int = 0
    alone: bool = False
    asked: int = 0
    #: Resident before training, with the examples: what training adds comes on top.
    base: int = 0
    #: Of it what is no page of a file, and what of that is swapped out.
    anonymous: int = 0
    #: Set by a failure, for good: what failed is not tried again by this process.
    _most: int = 0
    #: What the plan was made for, where that is a budget and not what a limit leaves; else 0.
    _held_to: int = 0
    #: Measured peak of a round that was over it.
    _over: int = 0
    #: Modelled peak of the plan, and of the plan without a shortage.
    _peak: int = 0
    _whole_peak: int = 0
    _short: bool = field(default=False, repr=False)

    def begin(self) -> int:
        """Return the budget to begin with; call it once the examples are read."""
        release_freed()  # of what training takes again the figures would tell nothing
        self.base, now = resident_bytes(), read_counters()
        self.anonymous = now.anonymous + now.swapped
        self._short, self._whole_peak = False, 0
        return self._ask(self._whole())

    def added(self, meter: PeakMeter) -> int:
        """Return what training added since the beginning, at its peak; 0 if that is not exact."""
        return max(0, meter.peak - self.anonymous) if meter.exact else 0

    def provisional(self) -> int:
        """Return what to register with before the examples are read: as much as it may become."""
        return self.budget or self.memory_limit

    def too_tight(self, error: BudgetError) -> InputError:
        """Return what an error means that no plan fits: of a limit, how large it has to be.

        Before the examples are read, what they take is not known.
        """
        if error.needs and self.budget:
            return no_plan_in(self.budget, error.needs, "--budget")
        if not (self.memory_limit and error.needs):
            return error
        taken = self.base or resident_bytes()
        found = too_tight(self.memory_limit, taken, error.needs, MARGIN, "--memory-limit")
        return found if self.base else InputError(f"{found}; the examples, not read yet, add to it")

    def planned(self, run: RunDescription) -> None:
        """Take note of the plan that the server made."""
        self._peak, self._over = run.predicted_peak, 0
        limited = self.memory_limit and not self.budget
        self._held_to = run.budget if self.alone and not limited else 0
        if not self._short:
            self._whole_peak = self._peak

    def hold(self, meter: PeakMeter) -> None:
        """Hold a round to the budget; what a limit leaves is the limit's to hold.

        Raises
        ------
        OverBudgetError
            If training has added more. The next plan is made for as much less.
        """
        meter.look()
        peak = self.added(meter)
        if 0 < self._held_to < peak:
            self._over = peak
            raise OverBudgetError(
                f"over the memory budget: training takes {format_bytes(peak)} (measured) of "
                f"{format_bytes(self._held_to)}"
            )

    def left(self) -> int | None:
        """Return what the tightest limit leaves for training (measured); None without a limit."""
        limit = limit_of_process()
        if limit is None:
            return None
        now = resident_bytes()
        others = max(0, usage() - now)
        return left_within(limit, others + min(now, self.base), MARGIN)

    def change(self) -> int | None:
        """Return another budget if the plan no longer fits, or a larger one does; else None."""
        left = self.left()
        if left is not None and left < self._peak:
            self._short = True
            return self._ask(max(left, 1))
        if self._short and (left is None or left >= _AGAIN * self._whole_peak):
            self._short = False
            return self._ask(self._whole())
        return None

    def failed(self) -> int:
        """Return a smaller budget, after the present plan took more memory than there was."""
        less = 2 * self._held_to - self._over if self._over else int(_NEXT * self._peak)
        bounds = [max(1, less), self._most, self.left() or 0]
        self._most = max(1, min(bound for bound in bounds if bound > 0))
        return self._ask(self._most)

    def again(self) -> int | None:
        """Return a budget to come back with, after none fitted; None while there is no more."""
        left = self.left()
        if left is None or left > _AGAIN * self.asked:
            self._most = 0
            self._short = left is not None and left < self._whole_peak
            return self._ask(left if self._short and left else self._whole())
        return None

    def _whole(self) -> int:
        if self.budget or not self.memory_limit:
            given = self.budget
        else:
            # What leaves nothing is refused by the server, which knows how much a plan needs.
            given = max(1, left_within(self.memory_limit, self.base, MARGIN))
        return min(given or self._most, self._most or given)

    def _ask(self, budget: int) -> int:
        self.asked = budget
        return budget
