"""The programs that lean nodes ask for, made of the run's task by torch, on the server."""

from dataclasses import replace
from functools import partial
from threading import Lock

from torch import nn

from mest_fed.errors import InputError
from mest_fed.kernels import Channels
from mest_fed.link.description import unknown_buffers
from mest_fed.link.messages import FIRST, SECOND, ProgramKind, ProgramRequest
from mest_fed.memory import Plan, memory_saving
from mest_fed.nn.capture import capture
from mest_fed.runtime.passes.planes import with_planes
from mest_fed.runtime.program import Program
from mest_fed.runtime.sizes import Sizes, second_size
from mest_fed.sparsity import Bounds
from mest_fed.task import Task
from mest_fed.training.program_choice import best_programs, program_of
from mest_fed.training.step_program import StepPrograms
from mest_fed.training.tracing import check_plain

#: The program of a group, and those of all sizes.
_Made = tuple[Program, Sizes]

#: Meta models are of the task, and are changed for a moment while they are captured.
_ONE = Lock()


def make_programs(task: Task, plan: Plan, wanted: ProgramRequest) -> dict[str, bytes]:
    """Return the parts of a program: two sizes of it as JSON, of which all others follow.

    They are those by which a client with torch trains under the same plan.

    Parameters
    ----------
    task : Task
        The run's.
    plan : Plan
        Of the node.
    wanted : ProgramRequest
        What it asks for.

    Raises
    ------
    InputError
        If the node asks for what no message of this run leads to, or there is no such program.
    """
    with _ONE:
        model = task.trace.at(_granules(task, wanted))
        made = _forward if wanted.kind is ProgramKind.FORWARD else _step
        first, sizes = made(task, plan, model, wanted)
        held = (it.name for it in first.buffers if it.role in ("parameter", "state"))
        if unknown := unknown_buffers(task.spec, held):
            name = task.config.model.name
            raise InputError(f"model.name = {name!r}: a lean node cannot hold {unknown[0]!r}")
        parts = {FIRST: first}
        if first.examples > 1:
            parts[SECOND] = sizes(second_size(first.examples))
    return {name: program.to_json().encode() for name, program in parts.items()}


def _granules(task: Task, wanted: ProgramRequest) -> dict[str, int]:
    """Return the granules that each sparse layer's program has room for.

    Raises
    ------
    InputError
        If the counts are not of this model.
    """
    spec, counts = task.spec, dict(wanted.counts)
    if counts.keys() != spec.groups.keys():
        raise InputError("the counts that the node gives are not of this run's mask groups")
    room = task.method.peak if wanted.mutates else 1.0
    granules = {}
    for group, layers in spec.groups.items():
        layout, count = spec.group_layout(group), counts[group]
        if not 0 < count <= layout.num_granules:
            raise InputError(f"{count} active granules of {group}; allowed: 1 to those it has")
        most = Bounds(ceiling=room).ceiling_count(count, layout)
        for layer in layers:
            # the channels between two layers are as many as there are active ones
            exact = isinstance(spec.layouts[layer].storage, Channels)
            granules[layer] = count if exact else max(count, most)
    return {layer: granules[layer] for layer in spec.layouts}


def _step(
    task: Task, plan: Plan, model: nn.Module, wanted: ProgramRequest
) -> tuple[Program, Sizes]:
    settings, example = task.optimizer(0.0), task.example
    if not plan.shape.momentum:
        settings = settings.without_momentum()
    given = example.input_shape, example.input_dtype
    of = partial(
        StepPrograms,
        *(model, given, task.objective, replace(settings, learning_rate=1.0)),
        storage=plan.memory.saved,
    )
    model.train()
    with memory_saving(model, plan.memory):
        check_plain(model, training=True)
        whole = wanted.examples <= plan.micro_batch and not wanted.reads
        programs = best_programs(of, plan.micro_batch, whole=whole)
        return _with_second(*program_of(programs, programs(plan.micro_batch), plan.micro_batch))


def _forward(
    task: Task, plan: Plan, model: nn.Module, wanted: ProgramRequest
) -> tuple[Program, Sizes]:
    del plan
    dtype = str(task.example.input_dtype).removeprefix("torch.")

    def captured(examples: int) -> Program:
        shape = (examples, *task.example.input_shape)
        return with_planes(capture(model, shape, dtype, training=False).program).checked()

    model.eval()
    try:
        first = captured(wanted.examples)
        return _with_second(first, Sizes(captured, first))
    finally:
        model.train()


def _with_second(first: Program, sizes: Sizes) -> _Made:
    """Make the second size while the model is as the first one's was: frozen, in training."""
    if first.examples > 1:
        sizes(second_size(first.examples))
    return first, sizes
