"""Memory of training: footprint model and planner. Needs torch alone."""

from mest_fed.memory.footprint import Footprint, TrainingShape, footprint
from mest_fed.memory.planner import DENSITY_STEPS, Plan, candidates, make_plan
from mest_fed.memory.trace import ModelTrace, trace_model

__all__ = [
    "DENSITY_STEPS",
    "Footprint",
    "ModelTrace",
    "Plan",
    "TrainingShape",
    "candidates",
    "footprint",
    "make_plan",
    "trace_model",
]
