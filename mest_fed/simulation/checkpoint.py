"""What a checkpoint of a simulation holds: the server, the clock, and the folder's seal."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mest_fed.devices import DeviceProfile, read_profile
from mest_fed.devices.profile import profile_name
from mest_fed.memory import Plan, read_plan
from mest_fed.server.checkpoint import (
    Arrays,
    checkpoint_name,
    checkpoint_of_run,
    finite,
    restore_strategy,
    save_checkpoint,
    strategy_arrays,
    whole,
)
from mest_fed.server.seal import read_seal
from mest_fed.server.strategy import MestStrategy
from mest_fed.simulation.behaviour.clock import VirtualClock
from mest_fed.simulation.client_state import StatesDigest
from mest_fed.simulation.client_state.store import SHARDS
from mest_fed.simulation.engine.grid import EngineGrid

_CLOCK = "clock"


def server_arrays(arrays: Arrays) -> Arrays:
    """Return the arrays of a checkpoint that are the server's: all but the clock's."""
    return {key: array for key, array in arrays.items() if key.partition("|")[0] != _CLOCK}


@dataclass
class Snapshot:
    """Taken after every round, written to disk when a checkpoint is due or the run is stopped.

    Taking one copies nothing: arrays are replaced in a run, never edited.

    Parameters
    ----------
    arrays : dict of str to array
        The server's tensors and the clock's state.
    facts : dict
        What is not an array.
    """

    arrays: Arrays
    facts: dict[str, Any]

    @classmethod
    def take(
        cls,
        strategy: MestStrategy,
        grid: EngineGrid,
        clock: VirtualClock,
        *,
        run: Mapping[str, Any],
    ) -> "Snapshot":
        """Take a snapshot of a run between two rounds; ``run`` is what :class:`RunFacts` reads."""
        arrays, facts = strategy_arrays(strategy)
        arrays |= {f"{_CLOCK}|{name}": array for name, array in clock.state().items()}
        facts |= run
        facts["busy"] = {str(node): until for node, until in grid.busy.items()}
        return cls(arrays, facts)

    def save(self, folder: Path) -> Path:
        """Write a checkpoint file; return its path."""
        path = folder / checkpoint_name(self.facts["round"])
        save_checkpoint(path, self.arrays, self.facts)
        return path

    def restore(self, strategy: MestStrategy, grid: EngineGrid, clock: VirtualClock) -> None:
        """Put a run back to where the snapshot was taken.

        Raises
        ------
        InputError
            If the snapshot is not one of this run.
        """
        server = server_arrays(self.arrays)
        time = {
            key.partition("|")[2]: array for key, array in self.arrays.items() if key not in server
        }
        restore_strategy(strategy, server, self.facts)
        with checkpoint_of_run():
            for name, array in time.items():
                if np.isnan(array).any():
                    raise ValueError(f"{name} of the clock is no number")
            clock.restore(time)
            busy = {int(node): finite(until) for node, until in self.facts["busy"].items()}
        grid.busy = busy


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint says of its run and its folder, beside the server and the clock.

    Parameters
    ----------
    round : int
        After which it was taken.
    preset : str
        What the configuration is called.
    wall_seconds : float
        That the run had taken.
    plans : dict of str to Plan
        Device profile -> its plan: a resumed run keeps it, whatever would be planned today.
    profiles : dict of str to DeviceProfile
        Device profile -> what it said: a resumed run keeps that too, or its clock would change.
    seal : dict
        See :meth:`RunFolder.seal`.
    states : StatesDigest
        Of the clients' states.
    """

    round: int
    preset: str
    wall_seconds: float
    plans: dict[str, Plan]
    profiles: dict[str, DeviceProfile]
    seal: dict[str, Any]
    states: StatesDigest

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> "RunFacts":
        """Read what :meth:`as_table` wrote.

        Raises
        ------
        InputError
            If something is missing or of the wrong kind.
        """
        with checkpoint_of_run():
            done = whole(facts["round"])
            shards = tuple(str(digest) for digest in facts["states"])
            if len(shards) != SHARDS:
                raise ValueError(f"it has digests of {len(shards)} files of clients' states")
            plans, profiles = facts["plans"], facts["profiles"]
            if plans.keys() != profiles.keys():
                raise ValueError("its plans and its profiles are of other devices")
            return cls(
                done,
                str(facts["preset"]),
                finite(facts["wall_seconds"]),
                {name: read_plan(text, f"plan of {name}") for name, text in plans.items()},
                {
                    name: read_profile(profile_name(name), table, f"profile {name}: ")
                    for name, table in profiles.items()
                },
                read_seal(facts),
                StatesDigest(done, shards),
            )

    def as_table(self) -> dict[str, Any]:
        """Return the facts as plain values; the round is the server's."""
        return {
            "preset": self.preset,
            "wall_seconds": self.wall_seconds,
            "plans": {name: plan.as_json() for name, plan in self.plans.items()},
            "profiles": {name: profile.as_table() for name, profile in self.profiles.items()},
            "seal": self.seal,
            "states": list(self.states.shards),
        }
