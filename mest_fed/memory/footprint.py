"""Bytes that training adds to a process, part by part. Modelled; nothing here is measured."""

import warnings
from dataclasses import dataclass, fields, replace

from torch import nn

from mest_fed.catalogue import Recompute
from mest_fed.errors import InputError
from mest_fed.memory.activations import MemoryOptions, memory_saving
from mest_fed.memory.program_bytes import PlannedStep, program_bytes
from mest_fed.memory.round_bytes import (
    FLOAT,
    MUTATION,
    PERTURBED_AT_ONCE,
    ROUND,
    beside_passes,
    input_bytes,
    largest_mask,
    model_bytes,
    padding_bytes,
    sent_bytes,
    wire_bytes,
)
from mest_fed.memory.step_bytes import (
    StepOptions,
    TrainingShape,
    UntraceableError,
    measured_step,
    step_bytes,
)
from mest_fed.memory.trace import ModelTrace, meta_model_of
from mest_fed.memory.training_setup import TrainingSetup
from mest_fed.runtime.batches import GROUPS_AT_ONCE
from mest_fed.sparsity import Method, layer_counts
from mest_fed.system.peak_meter import can_measure

#: What training adds beside tensors: allocator slack, Python objects, autograd's nodes. Measured
#: as the rest that the other parts leave unexplained, with torch 2.13 on x86-64.
RUNTIME = 2_300_000

#: What forward passes by torch take beyond the parts that a trace shows, in training without
#: backward (measured as the rest, 0.8 to 1.1 MB with images of 32x32).
FORWARD_BY_TORCH = 1_500_000


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
        What it keeps of each trained value: SGD's momentum, Adam's two moments, and the values from
        which FedProx's term measures; with released gradients their sum as well.
    index : int
        Slots of the active granules.
    activations : int
        What is kept of one micro-batch between forward and backward, in its format.
    workspace : int
        What exists for a moment or is used again and again: gradients of activations, micro-chunks
        of recomputed segments, the kernels' scratch, blocked copies of dense convolutions; beside a
        compiled step, which keeps its memory meanwhile, what a mutation takes.
    batch : int
        Labels of a whole batch, and images: of the whole, where it is given; in a client's round as
        they are read, where they are augmented, and the few that are computed.
    wire : int
        The received message, and the state decoded from it; where updates are differences, what
        earlier ones left out, and what packing takes; and by how much the state that is sent and
        its message take more than steps, whose memory is given back before.
    runtime : int
        :data:`RUNTIME`, whatever the model; of a compiled step the descriptions of its programs,
        and :data:`ROUND`.
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


def footprint(trace: ModelTrace, setting: TrainingSetup, shape: TrainingShape) -> Footprint:
    """Predict the footprint of local training.

    A model with a layer that cannot be traced is measured instead, in a child process for each
    shape; a warning names the layer.

    Raises
    ------
    UntraceableError
        If such a model cannot be measured here either (it needs /proc and fork).
    """
    trace = trace.of_density(shape.density)
    key = (setting, shape)
    if key not in trace.known:
        trace.known[key] = _footprint(trace, setting, shape)
    found: Footprint = trace.known[key]
    return found


def is_compiled(trace: ModelTrace, setting: TrainingSetup, shape: TrainingShape) -> bool:
    """Say whether steps of a shape are programs, but for those in which a mutation reads."""
    return _compiled_once(trace.of_density(shape.density), setting, shape) is not None


def _compiled_once(
    trace: ModelTrace, setting: TrainingSetup, shape: TrainingShape
) -> Footprint | None:
    shape = _as_program(shape)
    key = ("compiled", setting, shape)
    if key not in trace.known:
        active = peak_granules(trace, setting.method, shape)
        trace.known[key] = _compiled(trace, active, setting, shape)
    found: Footprint | None = trace.known[key]
    return found


def at_least(trace: ModelTrace, setting: TrainingSetup, shape: TrainingShape) -> int:
    """Return bytes that a footprint is not below: itself where it is known or quickly found.

    To trace a step of torch takes many times as long as to say what stands in memory in any case
    when a segment returns: the model, its batch, and what enters and leaves the segment. It is said
    only of models that are programs otherwise, in which all examples go the same way.
    """
    trace = trace.of_density(shape.density)
    if (setting, shape) in trace.known:
        return footprint(trace, setting, shape).total
    memory = MemoryOptions(frozen=shape.memory.frozen, segments=shape.memory.segments)
    plain = replace(shape, memory=memory)
    if is_compiled(trace, setting, shape) or not is_compiled(trace, setting, plain):
        return footprint(trace, setting, shape).total
    active = peak_granules(trace, setting.method, shape)
    part = min(shape.micro_batch, shape.batch)
    model = trace.at(active)
    with memory_saving(model, memory):  # what is frozen has no momentum
        trained = sum(it.nbytes for it in model.parameters() if it.requires_grad)
    return sum(
        (
            *model_bytes(trace, active).values(),
            trained if shape.momentum else 0,
            input_bytes(trace, setting, shape, part),
            trace.largest_passage(shape.memory.segments) * part,
            wire_bytes(trace, active, setting),
            RUNTIME,
        )
    )


def _as_program(shape: TrainingShape) -> TrainingShape:
    """Return one of the shapes that are one program.

    Programs compute norms again in any case, and have no gradients to release.
    """
    memory = replace(shape.memory, release_gradients=False)
    if memory.recompute == Recompute.NORMS:
        memory = replace(memory, recompute=Recompute.NONE)
    return replace(shape, memory=memory)


def _footprint(trace: ModelTrace, setting: TrainingSetup, shape: TrainingShape) -> Footprint:
    active = peak_granules(trace, setting.method, shape)
    compiled = _compiled_once(trace, setting, shape)
    if compiled is not None and not (setting.mutates and setting.method.needs_dense_gradient):
        return compiled
    # Where a mutation reads dense gradients, the step is torch's.
    by_torch = _by_torch(trace, active, setting, shape)
    return by_torch if compiled is None else max(compiled, by_torch, key=lambda it: it.total)


def _compiled(
    trace: ModelTrace, active: dict[str, int], setting: TrainingSetup, shape: TrainingShape
) -> Footprint | None:
    """Read the footprint off the step's program; None if it has none."""
    if setting.compiler is None:
        return None
    step = setting.compiler(trace.at(active), shape, reads=setting.mutates)
    if step is None:
        return None
    try:
        parts = program_bytes(step, shape, setting.threads, rest=setting.rest)
    except InputError:  # as the runtime would in training: then torch trains
        return None
    if setting.forward_only:
        # A piece of a direction, where values are padding, and a loss of the outputs.
        parts["workspace"] += FLOAT * PERTURBED_AT_ONCE + 3 * parts["batch"]
        parts["workspace"] += padding_bytes(trace, active)
    target = trace.loss.targets(1, "meta").nbytes
    made = _made(step, setting, shape)
    parts["batch"] += target * shape.batch + input_bytes(trace, setting, shape, made)
    if setting.forward_only:
        parts["workspace"] += beside_passes(trace, active)
    parts["runtime"] += ROUND if setting.messages else 0
    # A soft bound grows before there is a step, and ranks active granules alone after the last.
    if setting.mutates and setting.method.peak == 1:
        parts["workspace"] += MUTATION * largest_mask(trace)
    model, wire = model_bytes(trace, active), wire_bytes(trace, active, setting)
    at_end = wire + sent_bytes(trace, active, setting)
    # What steps take is given back before the state that is sent and its message are made.
    given_back = sum(parts.values()) - parts["runtime"]
    return Footprint(**parts, **model, wire=max(wire, at_end - given_back))


def _made(step: PlannedStep, setting: TrainingSetup, shape: TrainingShape) -> int:
    """Return how many of a batch's inputs a program has made at a time."""
    if setting.forward_only:
        return shape.batch
    if not step.program.takes_groups:
        return min(shape.batch, shape.micro_batch)
    return min(shape.batch, GROUPS_AT_ONCE * step.program.examples)


def _by_torch(
    trace: ModelTrace, active: dict[str, int], setting: TrainingSetup, shape: TrainingShape
) -> Footprint:
    grows_by_gradient = setting.method.needs_dense_gradient and bool(trace.spec.groups)
    options = StepOptions(
        trace.input_shape,
        setting.threads,
        loss=trace.traceable_loss,
        keep_gradients=setting.mutates,
        dense_gradients=grows_by_gradient,
        input_dtype=trace.input_dtype,
        forward_only=setting.forward_only,
    )
    try:
        peak = dict(step_bytes(meta_model_of(trace.at(active)), shape, options))
    except UntraceableError as error:
        return _measured(trace, active, shape, error, setting)
    peak["workspace"] = peak.get("workspace", 0) + setting.threads * trace.scratch
    made = min(shape.micro_batch, shape.batch)
    peak["batch"] += input_bytes(trace, setting, shape, made) - trace.image * shape.batch
    if setting.forward_only:
        peak["workspace"] += beside_passes(trace, active) + FORWARD_BY_TORCH
    return Footprint(**peak, wire=wire_bytes(trace, active, setting))


def _measured(
    trace: ModelTrace,
    active: dict[str, int],
    shape: TrainingShape,
    why: UntraceableError,
    setting: TrainingSetup,
) -> Footprint:
    """Measure a step; what is not known by part stands as workspace."""
    if not can_measure():
        raise why
    warnings.warn(f"{why}; its memory is measured instead", RuntimeWarning, stacklevel=4)
    model = meta_model_of(trace.at(active))
    total = measured_step(model, trace.input_shape, shape, trace.input_dtype, trace.loss)
    known = {
        **model_bytes(trace, active),
        "optimizer": _optimizer_state(model, shape),
        "batch": trace.image * shape.batch,
    }
    rest = max(0, total - sum(known.values()))
    wire = wire_bytes(trace, active, setting)
    return Footprint(**known, workspace=rest, wire=wire, runtime=0)


def _optimizer_state(meta_model: nn.Module, shape: TrainingShape) -> int:
    """Count what an optimizer keeps; 0 for one that needs numbers, whose state is workspace."""
    try:
        return sum(tensor.nbytes for tensor in shape.build_optimizer(meta_model).make_state())
    except (NotImplementedError, RuntimeError):
        return 0


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
