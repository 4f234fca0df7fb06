"""What a device's memory options ask for, whether it can be, and what that means in words."""

from dataclasses import dataclass

from mest_fed.cli.baseline import Baseline
from mest_fed.cli.device_room import DeviceRoom
from mest_fed.devices import DeviceProfile
from mest_fed.errors import InputError, not_allowed
from mest_fed.system.limits import (
    MARGIN,
    MemoryLimit,
    left_for_training,
    left_within,
    limit_of_process,
    memory_of_machine,
)
from mest_fed.units import format_bytes, parse_bytes

#: Bytes below which no model trains: weights, gradients and an example of a linear layer of 64
#: inputs and 10 outputs take more. What a run's own model needs, its plan says.
LEAST_BUDGET = 4000
KEY = "--memory-limit"


@dataclass(frozen=True)
class NodeMemory:
    """A memory limit, a budget, or neither.

    Parameters
    ----------
    budget : int or None
        Bytes that training may add.
    limit : int or None
        Bytes that all of the node may take.
    margin : float or None
        Share of the limit that stays free; None where the run says which (``memory.margin``).
    """

    budget: int | None
    limit: int | None
    margin: float | None

    @classmethod
    def read(cls, budget: str | None, limit: str | None, margin: float | None) -> "NodeMemory":
        """Read the options as they were typed.

        Raises
        ------
        InputError
            If one is nonsense or they exclude each other.
        """
        if budget is not None and limit is not None:
            raise InputError("--budget and --memory-limit exclude each other; allowed: one of them")
        if margin is not None and not 0 <= margin < 1:
            raise not_allowed("--margin", margin, "a number in [0, 1)")
        if margin is not None and limit is None:
            raise not_allowed("--margin", margin, "only beside --memory-limit")
        size = None if budget is None else parse_bytes(budget, "--budget")
        if size is not None and size < LEAST_BUDGET:
            allowed = f"{format_bytes(LEAST_BUDGET)} or more: no model trains in less"
            raise not_allowed("--budget", budget, allowed)
        return cls(
            size,
            None if limit is None else parse_bytes(limit, "--memory-limit"),
            margin,
        )

    def node_config(self) -> dict[str, int | float | str]:
        """Return the keys of the node config for the ClientApp."""
        if self.limit is None:
            return {} if self.budget is None else {"budget": self.budget}
        margin = {} if self.margin is None else {"memory-margin": self.margin}
        return {"memory-limit": self.limit, **margin}

    def check_budget(self, profile: DeviceProfile, baseline: Baseline) -> None:
        """Check that a budget fits beside the baseline: on the device, and where this process is.

        Raises
        ------
        InputError
            If it does not.
        """
        budget = self.budget or profile.budget_bytes
        DeviceRoom(profile, budget, baseline).check()
        for bound, whose in _bounds():
            left = left_within(bound, baseline.together, MARGIN)
            if budget > left:
                raise not_allowed(
                    "--budget",
                    format_bytes(budget),
                    f"{f'at most {format_bytes(left)}' if left > 0 else 'none'}, since {whose} "
                    f"{format_bytes(bound)}, {MARGIN:.0%} of it stay free and the node takes "
                    f"{format_bytes(baseline.together)} before it trains ({baseline.source})",
                )

    def check_limit(self) -> None:
        """Check a limit against this machine's memory and the limit that this process is under.

        Raises
        ------
        InputError
            If it is larger.
        """
        assert self.limit is not None
        for bound, whose in _bounds():
            if self.limit > bound:
                given = format_bytes(self.limit)
                raise not_allowed(
                    "--memory-limit",
                    given,
                    f"at most {bound} bytes, since {whose} {format_bytes(bound)}",
                )

    def left(self, baseline: Baseline, kind: str, margin: float) -> int:
        """Return the bytes that the limit leaves for training.

        Parameters
        ----------
        baseline : Baseline
            The node's processes before they train.
        kind : str
            What holds the limit (``MemoryLimit.kind``).
        margin : float
            Share of the limit that stays free where the options do not say.

        Raises
        ------
        InputError
            If it leaves none.
        """
        assert self.limit is not None
        margin = margin if self.margin is None else self.margin
        return left_for_training(self.limit, baseline.taken(kind), margin, KEY)

    def limit_in_words(self, held: MemoryLimit, baseline: Baseline) -> str:
        """Say what holds the limit, what the baseline is and what remains.

        Raises
        ------
        InputError
            If nothing remains.
        """
        margin = MARGIN if self.margin is None else self.margin
        left = format_bytes(self.left(baseline, held.kind, MARGIN))
        or_else = " (unless the run sets another)" if self.margin is None else ""
        return (
            f"memory limit: {format_bytes(held.bytes)}, held by {held.kind}: it {held.caveat}\n"
            f"baseline: {baseline.in_words()}\n"
            f"budget: up to about {left} for training: the limit less {margin:.0%} margin"
            f"{or_else}, the baseline, and what the run's data bring in, measured at its first "
            "message"
        )

    def budget_in_words(self, profile: DeviceProfile, baseline: Baseline) -> str:
        """Say what the budget is, that nothing but the plan holds it, and what the device has."""
        present = limit_of_process()
        over = "none" if present is None else f"{format_bytes(present)}, set by others"
        budget = self.budget or profile.budget_bytes
        source = f"{profile.name}'s own, unless the run sets fleet.budgets"
        return (
            f"memory limit: {over}; --memory-limit has the system hold one\n"
            f"baseline: {baseline.in_words()}\n"
            f"budget: {format_bytes(budget)} for training "
            f"({'--budget' if self.budget else source}); only the plan keeps within it\n"
            f"{DeviceRoom(profile, budget, baseline).in_words()}"
        )


def _bounds() -> list[tuple[int, str]]:
    """Return what bounds the memory of this process, each with a phrase to stand before it."""
    bounds = (limit_of_process(), "this process is under a limit of")
    machine = (memory_of_machine(), "this machine has")
    return [(bound, whose) for bound, whose in (bounds, machine) if bound is not None]
