"""A whole run at the end of a round: server, clients' states and clock."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from server.checkpoint import (
    Arrays,
    checkpoint_name,
    restore_strategy,
    save_checkpoint,
    strategy_arrays,
)
from server.strategy import MestStrategy
from simulations.engine.flower_internals import context_state_from_bytes, context_state_to_bytes
from simulations.engine.grid import FleetGrid
from simulations.life.clock import VirtualClock

_CLIENT = "client"
_CLOCK = "clock"


@dataclass
class Snapshot:
    """Taken after every round, written to disk when a checkpoint is due or the run is stopped.

    Taking one copies nothing: arrays and states are replaced in a run, never edited.

    Parameters
    ----------
    arrays : dict of str to array
        The server's tensors, the clock's state, and after loading the clients' states.
    facts : dict
        What is not an array.
    states : dict of int to RecordDict
        Clients' states by node id.
    """

    arrays: Arrays
    facts: dict[str, Any]
    states: dict[int, RecordDict] | None = None

    @classmethod
    def take(
        cls,
        strategy: MestStrategy,
        grid: FleetGrid,
        clock: VirtualClock,
        *,
        wall_seconds: float,
        preset: str,
    ) -> "Snapshot":
        """Take a snapshot of a run between two rounds."""
        arrays, facts = strategy_arrays(strategy)
        arrays |= {f"{_CLOCK}|{name}": array for name, array in clock.state().items()}
        facts |= {"wall_seconds": wall_seconds, "preset": preset}
        return cls(arrays, facts, dict(grid.states))

    def save(self, folder: Path) -> Path:
        """Write a checkpoint file; return its path."""
        path = folder / checkpoint_name(self.facts["round"])
        clients = {
            f"{_CLIENT}|{node}": np.frombuffer(context_state_to_bytes(state), np.uint8)
            for node, state in (self.states or {}).items()
        }
        save_checkpoint(path, self.arrays | clients, self.facts)
        return path

    def restore(self, strategy: MestStrategy, grid: FleetGrid, clock: VirtualClock) -> None:
        """Put a run back to where the snapshot was taken."""
        server: Arrays = {}
        time: Arrays = {}
        for key, array in self.arrays.items():
            section, _, name = key.partition("|")
            if section == _CLIENT:
                grid.states.put(int(name), context_state_from_bytes(array.tobytes()))
            elif section == _CLOCK:
                time[name] = array
            else:
                server[key] = array
        restore_strategy(strategy, server, self.facts)
        clock.restore(time)
