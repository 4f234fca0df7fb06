"""Activations that training keeps between forward and backward: in fewer bytes, or made again."""

from mest_fed.catalogue import FORMATS
from mest_fed.memory.activations.saving import (
    RECOMPUTE,
    MemoryOptions,
    NothingSavedWarning,
    check_frozen,
    memory_saving,
)
from mest_fed.memory.activations.segments import segments_of

__all__ = [
    "FORMATS",
    "RECOMPUTE",
    "MemoryOptions",
    "NothingSavedWarning",
    "check_frozen",
    "memory_saving",
    "segments_of",
]
