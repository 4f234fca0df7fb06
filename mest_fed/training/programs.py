"""A model's compiled programs, which compute in the memory of the model and its optimizer.

Parameters, buffers and momenta are torch's tensors: a program is bound to them before it runs, so
whatever reads or changes the model between two steps (a mutation, an evaluation, an upload) needs
to know nothing of programs.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
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
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.nn.optimizers import FIRST, MOMENTUM, SECOND, STEP, ClientOptimizer
from mest_fed.runtime import native
from mest_fed.runtime.forward import CompiledForward
from mest_fed.runtime.program import Program
from mest_fed.runtime.step import CompiledStep
from mest_fed.training.objective import Objective
from mest_fed.training.step_program import step_program

#: Programs of one model that are kept, each with its arena.
MOST_PROGRAMS = 16

#: Examples that an evaluation computes together.
EVALUATION_GROUP = 16

#: State of a parameter in programs -> the name that it has in a client's optimizer.
_KEYS = {"momentum_buffer": MOMENTUM, "first": FIRST, "second": SECOND, "step": STEP}

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
    """

    buffer: str
    shape: tuple[int, ...]
    tensor: Tensor
    module: nn.Module | None = None
    leaf: str = ""

    def find(self) -> Tensor:
        """Return the tensor that the model has at present."""
        found: Tensor = self.tensor if self.module is None else getattr(self.module, self.leaf)
        return found

    def array(self) -> Array:
        """Return the tensor's memory in the buffer's shape."""
        return _memory(self.find(), self.shape)


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
    if len({id(it) for it in tensors.values()}) < len(tensors):
        raise InputError("a tensor that operators read in two shapes is not allowed in a program")
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise InputError(f"{name!r} is not contiguous on the CPU: the model is no program")
    shapes = {it.name: it.shape for it in captured.program.buffers}
    return [
        Place(name, shapes[name], tensor, *owners.get(id(tensor), (None, "")))
        for name, tensor in tensors.items()
    ]


def _memory(tensor: Tensor, shape: tuple[int, ...]) -> Array:
    with plain_tensors():
        array: Array = tensor.detach().numpy()
    return array.reshape(shape)


class ModelStep:
    """A compiled training step in the memory of a model and its optimizer.

    Parameters
    ----------
    program, captured : Program, Captured
        As :func:`step_program` makes them.
    model : nn.Module
        Whose they are.
    threads : int
        To compute with.
    """

    def __init__(
        self, program: Program, captured: Captured, model: nn.Module, threads: int
    ) -> None:
        self.places = places_of(model, captured)
        #: Draws nothing: who trains gives the generator of the round.
        self.step = CompiledStep(program, threads, np.random.default_rng(0))
        self.output = captured.output
        self._states = list(self._find_states())
        self._counters = _batch_counters(program, self.places)

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

    def train(self, batch: Batch, learning_rate: float) -> tuple[float, Tensor]:
        """Take a step; return the mean loss and the outputs, which the next step overwrites."""
        inputs, targets = batch.inputs.numpy(), batch.targets.numpy()
        loss = self.step.step(inputs, targets, learning_rate)
        for module in self._counters:
            module.num_batches_tracked.add_(1)
        return loss, torch.from_numpy(self.step.runtime.memory(self.output))


def _batch_counters(program: Program, places: list[Place]) -> list[Any]:
    """Return the normalisations that count batches, once for each call in a step."""
    modules = {place.buffer: place.module for place in places if place.leaf == "running_mean"}
    calls = [it.arguments["running_mean"] for it in program.operators if it.name == "batch_norm"]
    called = (modules.get(program.buffers[it].name) for it in calls)
    return [it for it in called if getattr(it, "num_batches_tracked", None) is not None]


def _structure(model: nn.Module) -> tuple[object, ...]:
    """Return what of a model a program depends on, beside the classes of its modules."""
    return tuple((name, tuple(it.shape), it.requires_grad) for name, it in model.named_parameters())


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
        self, objective: Objective, settings: OptimizerSettings, batch: Batch
    ) -> ModelStep | None:
        """Return the step for batches of a shape under present masks; None if it has no program."""
        inputs, targets = batch.inputs, batch.targets
        threads = torch.get_num_threads()
        key = (
            "step",
            type(objective),
            _without_rate(settings),
            (*inputs.shape, inputs.dtype, *targets.shape),
            threads,
            _structure(self.model),
        )

        def make() -> ModelStep:
            check_plain(self.model, training=True)
            described = tuple(inputs.shape), inputs.dtype
            made = step_program(self.model, described, objective, settings)
            return ModelStep(*made, self.model, threads)

        found: ModelStep | None = self._find(key, make)
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the model does, which is in evaluation mode: by a program, if it has one."""
        threads = torch.get_num_threads()
        shape = (EVALUATION_GROUP, *inputs.shape[1:])
        key = ("forward", shape, inputs.dtype, threads, _structure(self.model))

        def make() -> tuple[CompiledForward, list[Place]]:
            check_plain(self.model, training=False)
            dtype = str(inputs.dtype).removeprefix("torch.")
            captured = capture(self.model, shape, dtype, training=False)
            places = places_of(self.model, captured)
            return CompiledForward(captured.program, threads), places

        found: tuple[CompiledForward, list[Place]] | None = self._find(key, make)
        if found is None:
            outputs: Tensor = self.model(inputs)
            return outputs
        program, places = found
        for place in places:
            program.bind(place.buffer, place.array())
        return torch.from_numpy(program.run(inputs.numpy()))

    def _find(self, key: object, make: Callable[[], Any]) -> Any:
        """Return what was made for a key, or make it; None where there can be none."""
        if key not in self._kept:
            try:
                self._kept[key] = make() if native.available() else None
            except InputError:
                self._kept[key] = None
            if len(self._kept) > MOST_PROGRAMS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _without_rate(settings: OptimizerSettings) -> OptimizerSettings:
    """Return settings of which programs differ: the rate is an input of theirs."""
    return replace(settings, learning_rate=1.0)
