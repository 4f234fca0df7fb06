"""Memory of training: what saves it, a model of its footprint, and a planner. Needs torch alone."""

from mest_fed.memory.activations import FORMATS, RECOMPUTE, NothingSavedWarning, Savings, saving
from mest_fed.memory.footprint import Footprint, Setting, footprint
from mest_fed.memory.levers import BATCH_NORM_PREFERENCE, DENSITY_STEPS, PREFERENCE, Wish
from mest_fed.memory.plan import Plan, read_plan
from mest_fed.memory.planner import Planner
from mest_fed.memory.shape import TrainingShape
from mest_fed.memory.trace import ModelTrace, trace_model

__all__ = [
    "BATCH_NORM_PREFERENCE",
    "DENSITY_STEPS",
    "FORMATS",
    "PREFERENCE",
    "RECOMPUTE",
    "Footprint",
    "ModelTrace",
    "NothingSavedWarning",
    "Plan",
    "Planner",
    "Savings",
    "Setting",
    "TrainingShape",
    "Wish",
    "footprint",
    "read_plan",
    "saving",
    "trace_model",
]
