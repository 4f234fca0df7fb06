"""Memory of training: what saves it, a model of its footprint, and a planner. Needs torch alone."""

from mest_fed.memory.activations import (
    FORMATS,
    RECOMPUTE,
    MemoryOptions,
    NothingSavedWarning,
    memory_saving,
)
from mest_fed.memory.footprint import Footprint, footprint
from mest_fed.memory.knobs import DENSITY_STEPS, PlanLimits
from mest_fed.memory.plan import Plan, read_plan
from mest_fed.memory.planner import Planner
from mest_fed.memory.step_bytes import TrainingShape
from mest_fed.memory.trace import ModelTrace, TrainingLoss, trace_model
from mest_fed.memory.training_setup import TrainingSetup

__all__ = [
    "DENSITY_STEPS",
    "FORMATS",
    "RECOMPUTE",
    "Footprint",
    "MemoryOptions",
    "ModelTrace",
    "NothingSavedWarning",
    "Plan",
    "PlanLimits",
    "Planner",
    "TrainingLoss",
    "TrainingSetup",
    "TrainingShape",
    "footprint",
    "memory_saving",
    "read_plan",
    "trace_model",
]
