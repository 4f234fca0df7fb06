"""What simulated clients keep between rounds: in memory, or on disk in the run folder."""

from simulations.states.memory import MemoryStates
from simulations.states.protocol import VersionedStates
from simulations.states.store import DiskStates

__all__ = ["DiskStates", "MemoryStates", "VersionedStates"]
