"""What simulated clients keep between rounds: on disk, in the run folder."""

from simulations.states.protocol import StatesDigest, VersionedStates
from simulations.states.store import DiskStates

__all__ = ["DiskStates", "StatesDigest", "VersionedStates"]
