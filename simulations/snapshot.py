"""A run at the end of a round: server and clock. The clients' states are in their own store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.checkpoint import (
    Arrays,
    checkpoint_name,
    restore_strategy,
    save_checkpoint,
    strategy_arrays,
)
from server.strategy import MestStrategy
from simulations.engine.grid import FleetGrid
from simulations.life.clock import VirtualClock

_CLOCK = "clock"


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
        facts["busy"] = {str(node): until for node, until in grid.busy.items()}
        return cls(arrays, facts)

    def save(self, folder: Path) -> Path:
        """Write a checkpoint file; return its path."""
        path = folder / checkpoint_name(self.facts["round"])
        save_checkpoint(path, self.arrays, self.facts)
        return path

    def restore(self, strategy: MestStrategy, grid: FleetGrid, clock: VirtualClock) -> None:
        """Put a run back to where the snapshot was taken."""
        server: Arrays = {}
        time: Arrays = {}
        for key, array in self.arrays.items():
            section, _, name = key.partition("|")
            if section == _CLOCK:
                time[name] = array
            else:
                server[key] = array
        restore_strategy(strategy, server, self.facts)
        clock.restore(time)
        grid.busy = {int(node): until for node, until in self.facts["busy"].items()}
