"""Activations that training keeps between forward and backward: in fewer bytes, or made again."""

from mest_fed.memory.activations.formats import FORMATS
from mest_fed.memory.activations.saving import RECOMPUTE, NothingSavedWarning, Savings, saving
from mest_fed.memory.activations.segments import segments_of

__all__ = ["FORMATS", "RECOMPUTE", "NothingSavedWarning", "Savings", "saving", "segments_of"]
