"""Bytes that training adds to a process, part by part. Modelled; nothing here is measured."""

import warnings
from dataclasses import dataclass, fields

from mest_fed.memory.meter import can_measure
from mest_fed.memory.step_bytes import (
    StepOptions,
    TrainingShape,
    UntraceableError,
    measured_step,
    step_bytes,
)
from mest_fed.memory.trace import ModelTrace
from mest_fed.sparsity import Method, layer_counts

#: What training adds beside tensors: allocator slack, Python objects, autograd's nodes. Measured
#: as the rest that the other parts leave unexplained, with torch 2.13 on x86-64.
RUNTIME = 2_300_000

FLOAT = 4
INDEX = 4


@dataclass(frozen=True)
class Footprint:
    """Bytes by part, at the moment when their sum is largest.

    Parameters
    ----------
    values : int
        Active weights at their peak, dense parameters and buffers.
    gradients : int
        Those that stand beside the values then; for RigL also dense ones.
    optimizer : int
        Momentum, one for each trained value; with consumed gradients their sum as well.
    index : int
        Slots of the active granules.
    activations : int
        What is kept of one micro-batch between forward and backward, in its format.
    workspace : int
        What exists for a moment or is used again and again: gradients of activations, micro-chunks
        of recomputed segments, the kernels' scratch, blocked copies of dense convolutions.
    batch : int
        Images and labels of a whole batch.
    wire : int
        The received message, and the state decoded from it.
    runtime : int
        :data:`RUNTIME`, whatever the model.
    """

    values: int = 0
    gradients: int = 0
    optimizer: int = 0
    index: int = 0
    activations: int = 0
    workspace: int = 0
    batch: int = 0
    wire: int = 0
    runtime: int = RUNTIME

    @property
    def total(self) -> int:
        """Sum of the parts: the predicted peak."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the parts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class TrainingSetup:
    """What beside its shape decides a device's footprint.

    Parameters
    ----------
    method : Method
        EM&S is charged at its peak, RigL with dense gradients.
    mutates : bool
        Whether mutation happens on the device, where gradients must stand for it.
    messages : bool
        Whether messages are charged: false for training by itself.
    threads : int
        That the device computes with: the compiled kernels have scratch memory for each. It is the
        device's number, not that of the process that plans for it, so that a plan is the same
        wherever it is made.
    """

    method: Method
    mutates: bool = False
    messages: bool = True
    threads: int = 1


def footprint(trace: ModelTrace, setting: TrainingSetup, shape: TrainingShape) -> Footprint:
    """Predict the footprint of local training.

    A model with a layer that cannot be traced is measured instead, in a child process for each
    shape; a warning names the layer.

    Raises
    ------
    UntraceableError
        If such a model cannot be measured here either (it needs /proc and fork).
    """
    key = (setting, shape)
    if key not in trace.known:
        trace.known[key] = _footprint(trace, setting, shape)
    found: Footprint = trace.known[key]
    return found


def _footprint(trace: ModelTrace, setting: TrainingSetup, shape: TrainingShape) -> Footprint:
    active = peak_granules(trace, setting.method, shape)
    grows_by_gradient = setting.method.needs_dense_gradient and bool(trace.spec.groups)
    options = StepOptions(
        trace.input_shape,
        setting.threads,
        keep_gradients=setting.mutates,
        dense_gradients=grows_by_gradient,
        input_dtype=trace.input_dtype,
    )
    try:
        peak = dict(step_bytes(trace.at(active), shape, options))
    except UntraceableError as error:
        return _measured(trace, active, shape, error, messages=setting.messages)
    peak["workspace"] = peak.get("workspace", 0) + setting.threads * trace.scratch
    return Footprint(**peak, wire=_wire(trace, active) if setting.messages else 0)


def _measured(
    trace: ModelTrace,
    active: dict[str, int],
    shape: TrainingShape,
    why: UntraceableError,
    *,
    messages: bool,
) -> Footprint:
    """Measure a step; what is not known by part stands as workspace."""
    if not can_measure():
        raise why
    warnings.warn(f"{why}; its memory is measured instead", RuntimeWarning, stacklevel=4)
    total = measured_step(trace.at(active), trace.input_shape, shape, trace.input_dtype)
    sparse = sum(FLOAT * count * trace.spec.layouts[name].width for name, count in active.items())
    values = sparse + trace.dense_parameters
    known = {
        "values": values + trace.buffers,
        "optimizer": values if shape.momentum else 0,
        "index": sum(INDEX * count for count in active.values()),
        "batch": trace.image * shape.batch,
    }
    rest = max(0, total - sum(known.values()))
    wire = _wire(trace, active) if messages else 0
    return Footprint(**known, workspace=rest, wire=wire, runtime=0)


def peak_granules(trace: ModelTrace, method: Method, shape: TrainingShape) -> dict[str, int]:
    """Return each sparse layer's active granules at the method's peak."""
    spec = trace.spec
    layouts = {group: spec.group_layout(group) for group in spec.groups}
    counts = layer_counts(layouts, shape.density, shape.distribution) if layouts else {}
    return {
        layer: min(layouts[group].num_granules, round(counts[group] * method.peak))
        for group, layers in spec.groups.items()
        for layer in layers
    }


def _wire(trace: ModelTrace, active: dict[str, int]) -> int:
    """Charge a message and the state that it carries."""
    layouts = trace.spec.layouts
    values = sum(FLOAT * count * layouts[name].width for name, count in active.items())
    masks = sum(INDEX * active[layers[0]] for layers in trace.spec.groups.values())
    return 2 * (values + masks + trace.dense_parameters + trace.buffers)
