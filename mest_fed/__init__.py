"""mest-fed: federated memory-economic sparse training.

The public names stand here and are imported when they are asked for: the names of the library
(sparse layers, methods, memory) need torch and NumPy alone, those of the fleet the extras.
"""

from typing import TYPE_CHECKING

from mest_fed.lazy_names import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mest_fed.config import RunConfig as RunConfig
    from mest_fed.config import from_table as from_table
    from mest_fed.config import read_toml as read_toml
    from mest_fed.data import load_dataset as load_dataset
    from mest_fed.data import partition as partition
    from mest_fed.devices import DeviceProfile as DeviceProfile
    from mest_fed.devices import load_profile as load_profile
    from mest_fed.errors import BudgetError as BudgetError
    from mest_fed.errors import InputError as InputError
    from mest_fed.errors import MestFedError as MestFedError
    from mest_fed.errors import WireError as WireError
    from mest_fed.memory import (
        MemoryOptions as MemoryOptions,
    )
    from mest_fed.memory import (
        Plan as Plan,
    )
    from mest_fed.memory import (
        PlanLimits as PlanLimits,
    )
    from mest_fed.memory import (
        Planner as Planner,
    )
    from mest_fed.memory import (
        TrainingSetup as TrainingSetup,
    )
    from mest_fed.memory import (
        TrainingShape as TrainingShape,
    )
    from mest_fed.memory import (
        memory_saving as memory_saving,
    )
    from mest_fed.memory import (
        read_plan as read_plan,
    )
    from mest_fed.memory import (
        trace_model as trace_model,
    )
    from mest_fed.nn import (
        Mutator as Mutator,
    )
    from mest_fed.nn import (
        SparseAttention as SparseAttention,
    )
    from mest_fed.nn import (
        SparseConv1d as SparseConv1d,
    )
    from mest_fed.nn import (
        SparseConv2d as SparseConv2d,
    )
    from mest_fed.nn import (
        SparseLayer as SparseLayer,
    )
    from mest_fed.nn import (
        SparseLinear as SparseLinear,
    )
    from mest_fed.nn import (
        build_model as build_model,
    )
    from mest_fed.nn import (
        layer_densities as layer_densities,
    )
    from mest_fed.nn import (
        match_masks as match_masks,
    )
    from mest_fed.nn import (
        sparsify as sparsify,
    )
    from mest_fed.nn import (
        to_dense as to_dense,
    )
    from mest_fed.nn import (
        whole_density as whole_density,
    )
    from mest_fed.nn.norms import BatchNorm2d as BatchNorm2d
    from mest_fed.nn.norms import GroupNorm as GroupNorm
    from mest_fed.nn.optimizers import SGD as SGD
    from mest_fed.nn.optimizers import Adam as Adam
    from mest_fed.nn.optimizers import AdamW as AdamW
    from mest_fed.schema import FailureKind as FailureKind
    from mest_fed.schema import Metric as Metric
    from mest_fed.schema import TaskStatus as TaskStatus
    from mest_fed.server.selection import ClientFeedback as ClientFeedback
    from mest_fed.server.selection import SelectionRequest as SelectionRequest
    from mest_fed.server.selection import Selector as Selector
    from mest_fed.server.strategy import MestStrategy as MestStrategy
    from mest_fed.simulation.engine.executor import make_executor as make_executor
    from mest_fed.simulation.fleet_grid import FleetGrid as FleetGrid
    from mest_fed.simulation.simulate import open_run as open_run
    from mest_fed.sparsity import Bounds as Bounds
    from mest_fed.sparsity import Interval as Interval
    from mest_fed.sparsity import MestEM as MestEM
    from mest_fed.sparsity import MestEMS as MestEMS
    from mest_fed.sparsity import Method as Method
    from mest_fed.sparsity import RigL as RigL
    from mest_fed.sparsity import Set as Set
    from mest_fed.sparsity import Static as Static
    from mest_fed.system.limits import MemoryLimit as MemoryLimit
    from mest_fed.system.limits import limit_memory as limit_memory
    from mest_fed.system.peak_meter import PeakMeter as PeakMeter
    from mest_fed.system.peak_meter import measure as measure
    from mest_fed.task import Task as Task
    from mest_fed.training.objective import Objective as Objective

#: Public name -> the module that it is imported from.
_HOMES = {
    "mest_fed.config": ("RunConfig", "from_table", "read_toml"),
    "mest_fed.data": ("load_dataset", "partition"),
    "mest_fed.devices": ("DeviceProfile", "load_profile"),
    "mest_fed.errors": ("BudgetError", "InputError", "MestFedError", "WireError"),
    "mest_fed.memory": (
        *("MemoryOptions", "Plan", "PlanLimits", "Planner", "TrainingSetup", "TrainingShape"),
        *("memory_saving", "read_plan", "trace_model"),
    ),
    "mest_fed.system.peak_meter": ("PeakMeter", "measure"),
    "mest_fed.nn": (
        *("Mutator", "SparseAttention", "SparseConv1d", "SparseConv2d", "SparseLayer"),
        *("SparseLinear", "build_model", "match_masks"),
        *("layer_densities", "sparsify", "to_dense", "whole_density"),
    ),
    "mest_fed.nn.norms": ("BatchNorm2d", "GroupNorm"),
    "mest_fed.nn.optimizers": ("SGD", "Adam", "AdamW"),
    "mest_fed.schema": ("FailureKind", "Metric", "TaskStatus"),
    "mest_fed.server.selection": ("ClientFeedback", "SelectionRequest", "Selector"),
    "mest_fed.server.strategy": ("MestStrategy",),
    "mest_fed.simulation.engine.executor": ("make_executor",),
    "mest_fed.simulation.fleet_grid": ("FleetGrid",),
    "mest_fed.simulation.simulate": ("open_run",),
    "mest_fed.sparsity": (
        *("Bounds", "Interval", "MestEM", "MestEMS", "Method", "RigL", "Set", "Static"),
    ),
    "mest_fed.system.limits": ("MemoryLimit", "limit_memory"),
    "mest_fed.task": ("Task",),
    "mest_fed.training.objective": ("Objective",),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _HOMES, globals())
