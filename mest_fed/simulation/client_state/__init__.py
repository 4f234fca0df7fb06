"""What simulated clients keep between rounds: on disk, in the run folder."""

from mest_fed.simulation.client_state.store import DiskStates, StatesDigest, VersionedStates

__all__ = ["DiskStates", "StatesDigest", "VersionedStates"]
