"""What a run asks of a store of clients' states, beside what the engine does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mest_fed.errors import InputError
from simulations.engine.states import States


@dataclass(frozen=True)
class StatesDigest:
    """Tells whether states are those of a commit.

    Parameters
    ----------
    step : int
        Of the commit.
    shards : tuple of str
        A digest of each part of the store.
    """

    step: int
    shards: tuple[str, ...]


class VersionedStates(States, Protocol):
    """Clients' states that can be put back to any commit.

    A step is a whole number that increases from commit to commit, such as the number of the round
    that has ended. A state without records is none.
    """

    def commit(self, step: int) -> None:
        """Keep, as one, all that was put since the last commit; it belongs to this step.

        Raises
        ------
        ValueError
            If the step is negative or not above the last one.
        """

    def rewind(self, step: int) -> None:
        """Go back to how it was right after the commit of a step; forget all that came later.

        Raises
        ------
        InputError
            If there is no commit of that step.
        """

    def prune(self, keep_from: int) -> None:
        """Forget the commits of lower steps, and what only they need; the last commit stays."""

    def digest(self) -> StatesDigest:
        """Return the digest of the last commit. Nothing may be put since then."""

    def close(self) -> None:
        """Forget what was put since the last commit, and let go of files."""


def check_commit(step: int, last: int) -> None:
    """Refuse a step that does not follow the last one (-1: there is none yet)."""
    if step <= last:
        raise ValueError(f"commit of step {step} after step {last}; allowed: {last + 1} and more")


def check_rewind(step: int, steps: Sequence[int], where: str) -> None:
    """Refuse to go back to a step that was not committed, or is forgotten."""
    if step not in steps:
        found = f"{steps[0]} to {steps[-1]}" if steps else "none"
        raise InputError(f"{where}: clients' states of step {step} are not there; found: {found}")
