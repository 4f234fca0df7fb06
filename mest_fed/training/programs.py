"""A model's compiled programs, which compute in the memory of the model and its optimizer.

Parameters, buffers and momenta are torch's tensors: a program is bound to them before it runs, so
whatever reads or changes the model between two steps (a mutation, an evaluation, an upload) needs
to know nothing of programs.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mest_fed.data import Batch
from mest_fed.errors import InputError
from mest_fed.nn.capture import Captured, capture
from mest_fed.nn.identity import plain_tensors
from mest_fed.nn.norms import has_batch_statistics
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.nn.optimizers import (
    FIRST,
    MOMENTUM,
    REFERENCE,
    SECOND,
    STEP,
    ClientOptimizer,
)
from mest_fed.runtime import native
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.batches import even_parts
from mest_fed.runtime.passes.groups import MOST_BYTES as GROUP_BYTES
from mest_fed.runtime.passes.groups import group_size
from mest_fed.runtime.passes.planes import with_planes
from mest_fed.runtime.program import Program
from mest_fed.runtime.step import CompiledForward, CompiledStep
from mest_fed.training.objective import Objective
from mest_fed.training.step_program import StepPrograms, step_program

#: Programs of one model that are kept, and the bytes that they may hold beside the model; the last
#: one is kept in any case.
MOST_PROGRAMS, MOST_BYTES = 16, 2**28

#: Examples that an evaluation computes together.
EVALUATION_GROUP = 8

#: State of a parameter in programs -> the name that it has in a client's optimizer.
_KEYS = {
    "momentum_buffer": MOMENTUM,
    "first": FIRST,
    "second": SECOND,
    "step": STEP,
    "reference": REFERENCE,
}

Array = NDArray[Any]
#: Steps that each parameter has taken, where an optimizer counts them.
Counts = dict[Tensor, NDArray[np.int64]]


@dataclass(frozen=True)
class Place:
    """Where a model holds what a buffer of a program stands for.

    Parameters
    ----------
    buffer : str
        Name in the program.
    shape : tuple of int
        There.
    tensor : Tensor
        What the model had when the program was made.
    module, leaf : nn.Module or None, str
        Who has it, and under which name: a mutation may have put another in its place.
    make : callable, optional
        Makes of the tensor what the buffer holds, if that is something else.
    """

    buffer: str
    shape: tuple[int, ...]
    tensor: Tensor
    module: nn.Module | None = None
    leaf: str = ""
    make: Callable[[Tensor], Tensor] | None = None

    def find(self) -> Tensor:
        """Return the tensor that the model has at present."""
        found: Tensor = self.tensor if self.module is None else getattr(self.module, self.leaf)
        return found

    def array(self) -> Array:
        """Return the tensor's memory in the buffer's shape, or new memory of what is made of it."""
        tensor = self.find()
        return _memory(tensor if self.make is None else self.make(tensor), self.shape)


def places_of(model: nn.Module, captured: Captured) -> list[Place]:
    """Return where a model holds the parameters and states of its program.

    Raises
    ------
    InputError
        If a tensor cannot be bound: it stands for two buffers, or is no array in C order.
    """
    owners = {
        id(tensor): (module, leaf)
        for module in model.modules()
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    tensors = captured.tensors
    changed = [id(it) for it in tensors.values() if it.is_floating_point()]
    if len(set(changed)) < len(changed):
        raise InputError("a tensor that operators read in two shapes is not allowed in a program")
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise InputError(f"{name!r} is not contiguous on the CPU: the model is no program")
    shapes = {it.name: it.shape for it in captured.program.buffers}
    found = []
    for name, tensor in tensors.items():
        module, leaf = owners.get(id(tensor), (None, ""))
        make = captured.computed.get(name)
        found.append(Place(name, shapes[name], tensor, module, leaf, make))
    return found


def _memory(tensor: Tensor, shape: tuple[int, ...]) -> Array:
    with plain_tensors():
        array: Array = tensor.detach().numpy()
    return array.reshape(shape)


class ModelStep:
    """A compiled training step in the memory of a model and its optimizer.

    Parameters
    ----------
    programs : StepPrograms
        Of the model as it is; asked for other sizes only while it is so.
    size : int
        Examples of a batch.
    micro_batch : int
        Most examples that go through the model together.
    threads : int
        To compute with.
    """

    def __init__(self, programs: StepPrograms, size: int, micro_batch: int, threads: int) -> None:
        captured, program = _grouped(programs, size, micro_batch)
        self.places = places_of(programs.model, captured)
        rng = np.random.default_rng(0)  # who trains gives the generator of the round
        self.step = CompiledStep(
            program, threads, rng, programs, micro_batch=micro_batch, batch=micro_batch
        )
        self._states = list(self._find_states())
        self._counters = _batch_counters(self.step.program, self.places)
        self._micro_batch = micro_batch
        held = {place.buffer for place in self.places}
        #: Bytes beside the model's: arena, gradients, states of the optimizer.
        self.bytes = self.step.arena_bytes + sum(
            it.bytes
            for it in program.buffers
            if it.role in ("sum", "state") and it.name not in held
        )

    def _find_states(self) -> Iterator[tuple[str, tuple[int, ...], Place, str]]:
        """Yield each state of the optimizer: buffer, shape, its parameter, its key there."""
        program = self.step.program
        for place in self.places:
            for state, key in _KEYS.items():
                buffer = f"{place.buffer}:{state}"
                if buffer in program.numbers:
                    yield buffer, program.buffers[program.numbers[buffer]].shape, place, key

    def bind(self, optimizer: ClientOptimizer, counts: Counts) -> None:
        """Compute in the tensors that model and optimizer have at present.

        Parameters
        ----------
        optimizer : ClientOptimizer
            What its state lacks is made.
        counts : dict
            Steps that were taken before; what is lacking is read from the optimizer.
        """
        for place in self.places:
            self.step.bind(place.buffer, place.array())
        for buffer, shape, place, key in self._states:
            parameter = place.find()
            optimizer.prepare(parameter)  # type: ignore[arg-type]
            held = optimizer.state[parameter].get(key)  # type: ignore[index]
            if key == STEP:
                if parameter not in counts:
                    counts[parameter] = np.array([int(held)], np.int64)  # type: ignore[arg-type]
                array: Array = counts[parameter]
            elif held is None:  # a first moment that decays at once
                array = np.zeros(shape, np.float32)
            else:
                array = _memory(held, shape)
            self.step.bind(buffer, array)

    def train(self, inputs: Tensor, targets: Tensor, learning_rate: float) -> tuple[float, Tensor]:
        """Take a step on a batch; return the mean loss, and the outputs until the next step."""
        loss = self.step.step(inputs.numpy(), targets.numpy(), learning_rate)
        parts = sum(1 for _ in even_parts(len(targets), self._micro_batch))
        for module in self._counters:
            module.num_batches_tracked.add_(parts)
        return loss, torch.from_numpy(self.step.outputs)


def _grouped(programs: StepPrograms, size: int, micro_batch: int) -> tuple[Captured, Program]:
    """Return the program of a group: how large that is does not depend on a batch's size.

    But where statistics are of the batch: there all sizes are programs of their own.
    """
    if has_batch_statistics(programs.model):
        captured = programs.captured(min(size, micro_batch))
        return captured, programs.of(captured)
    captured = programs.captured(micro_batch)
    program = programs.of(captured)
    if plan_arena(program).peak <= GROUP_BYTES:
        return captured, program
    captured = programs.captured(group_size(programs, micro_batch))
    return captured, programs.of(captured)


def _batch_counters(program: Program, places: list[Place]) -> list[Any]:
    """Return the normalisations that count batches, once for each call in a step."""
    modules = {place.buffer: place.module for place in places if place.leaf == "running_mean"}
    calls = [it.arguments["running_mean"] for it in program.operators if it.name == "batch_norm"]
    called = (modules.get(program.buffers[it].name) for it in calls)
    return [it for it in called if getattr(it, "num_batches_tracked", None) is not None]


class ModelForward:
    """A compiled evaluation in the memory of a model.

    Parameters
    ----------
    first : Captured
        Of a group of examples.
    places : list of Place
        Where the model has what the program reads.
    threads : int
        To compute with.
    captured : callable
        Gives the same of so many examples.
    """

    def __init__(
        self,
        first: Captured,
        places: list[Place],
        threads: int,
        captured: Callable[[int], Captured],
    ) -> None:
        self.places = places
        self._forward = CompiledForward(
            first.program, threads, lambda examples: captured(examples).program
        )
        #: Bytes beside the model's.
        self.bytes = self._forward.arena_bytes

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs of examples, valid until the next call."""
        for place in self.places:
            self._forward.bind(place.buffer, place.array())
        return torch.from_numpy(self._forward.predict(inputs.numpy()))


def _structure(model: nn.Module) -> tuple[object, ...]:
    """Return what of a model a program depends on, beside the classes of its modules."""
    return tuple((name, tuple(it.shape), it.requires_grad) for name, it in model.named_parameters())


@contextmanager
def refusing_changes(model: nn.Module) -> Iterator[None]:
    """Refuse a model whose code changes its buffers or attributes while it is traced.

    It is left as it was. A program would change nothing of it.

    Raises
    ------
    InputError
        If it does.
    """
    before = [
        (module, dict(vars(module)), {n: (t, t._version, t.clone()) for n, t in held.items()})
        for module in model.modules()
        for held in [{n: t for n, t in module._buffers.items() if t is not None}]
    ]
    changed = False
    try:
        yield
    finally:  # also where it is refused for another reason
        for module, attributes, buffers in before:
            changed |= _restore(module, attributes, buffers)
    if changed:
        raise InputError("its code changes buffers or attributes: the model is no program")


@torch.no_grad()
def _restore(
    module: nn.Module, attributes: dict[str, Any], buffers: dict[str, tuple[Tensor, int, Tensor]]
) -> bool:
    """Give a module what it had before; return whether that was something else."""
    now = vars(module)
    same = now.keys() == attributes.keys() and all(now[n] is it for n, it in attributes.items())
    for name, (tensor, version, copy) in buffers.items():
        if module._buffers.get(name) is not tensor or tensor._version != version:
            tensor.copy_(copy)
            module._buffers[name] = tensor
            same = False
    if not same:
        vars(module).clear()
        vars(module).update(attributes)
    return not same


def check_plain(model: nn.Module, *, training: bool) -> None:
    """Refuse a model of which a trace would miss something.

    Raises
    ------
    InputError
        If a module has a hook, or is in another mode than the model.
    """
    for name, module in model.named_modules():
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        if any(hooks):
            raise InputError(f"module {name!r} has a hook: the model is no program")
        if module.training != training:
            raise InputError(f"module {name!r} has a mode of its own: the model is no program")


def check_step(
    model: nn.Module,
    inputs: tuple[tuple[int, ...], torch.dtype],
    objective: Objective,
    settings: OptimizerSettings,
) -> None:
    """Check that a model has a compiled training step; it is in training mode afterwards.

    Parameters
    ----------
    model, inputs, objective, settings
        As of :func:`step_program`.

    Raises
    ------
    InputError
        If it has none: one line that says why.
    """
    native.module()
    model.train()
    check_plain(model, training=True)
    with refusing_changes(model):
        places_of(model, step_program(model, inputs, objective, settings)[1])


class Programs:
    """The compiled programs of one model: those that were used last.

    Parameters
    ----------
    model : nn.Module
        The only one that they are asked for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._kept: OrderedDict[object, Any] = OrderedDict()

    def step(
        self, objective: Objective, settings: OptimizerSettings, batch: Batch, micro_batch: int
    ) -> ModelStep | None:
        """Return the step of a model as it is, for batches of any size; None if it has none.

        Parameters
        ----------
        objective, settings
            As of :func:`step_program`.
        batch : Batch
            One of those.
        micro_batch : int
            Examples that go through the model together, at most.
        """
        example = tuple(batch.inputs.shape[1:]), batch.inputs.dtype
        how = objective, replace(settings, learning_rate=1.0), torch.get_num_threads()
        key = "step", example, micro_batch, how, _structure(self.model)

        def make() -> ModelStep:
            check_plain(self.model, training=True)
            programs = StepPrograms(self.model, example, objective, settings)
            return ModelStep(programs, len(batch.targets), micro_batch, how[-1])

        found: ModelStep | None = self._find(key, make)
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the model says in evaluation mode, by a program where it has one.

        Outputs are valid until the next call.
        """
        threads, example = torch.get_num_threads(), tuple(inputs.shape[1:])
        key = "forward", example, inputs.dtype, threads, _structure(self.model)

        def captured(examples: int) -> Captured:
            dtype = str(inputs.dtype).removeprefix("torch.")
            found = capture(self.model, (examples, *example), dtype, training=False)
            return replace(found, program=with_planes(found.program))

        def make() -> ModelForward:
            check_plain(self.model, training=False)
            first = captured(EVALUATION_GROUP)
            return ModelForward(first, places_of(self.model, first), threads, captured)

        found: ModelForward | None = self._find(key, make)
        outputs: Tensor = self.model(inputs) if found is None else found(inputs)
        return outputs

    def _find(self, key: object, make: Callable[[], Any]) -> Any:
        """Return what was made for a key, or make it; None where there can be none."""
        kept = self._kept
        if key not in kept:
            try:
                with refusing_changes(self.model):
                    kept[key] = make() if native.available() else None
            except InputError:
                kept[key] = None
        kept.move_to_end(key)
        while len(kept) > 1 and (len(kept) > MOST_PROGRAMS or self.bytes > MOST_BYTES):
            kept.popitem(last=False)
        return kept[key]

    @property
    def bytes(self) -> int:
        """Bytes that the programs hold beside the model."""
        return sum(it.bytes for it in self._kept.values() if it is not None)
