"""A layer as it stands in a compiled step: its operators alone, on planes in place.

A layer alone has no planes in place. What comes from a caller and goes back to one is in C order,
and a program would copy it there and back, which is the packing that planes are to save. So the
program here is a training step of the layer between two norms, which write and read its planes as
in a network, and of that program only the layer's own operators are run and timed: the product, the
gradient of its weights, the gradient of its input. A linear layer has no planes. In either, lists
that the slots are decoded to stay from call to call, as they do in a step until a mutation.

Two things of a network are not here: groups (a whole batch goes through the layer at once, so that
its planes come from memory; in a step those of a group are still in the cache), and operators that
take a neighbour in (pooling, sums of gradients, updates). Both are train_step.py's to show.
"""

import time
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from mest_fed.nn.norms import group_norm
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.native import Runtime
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator
from mest_fed.training.step_program import StepPrograms
from mest_fed.training.tasks import Classification

#: Bytes that buffers begin at a multiple of.
_ALIGNMENT = 64


class LayerProgram:
    """The operators of one layer, with memory of their own for each buffer.

    Parameters
    ----------
    layer : nn.Module
        A convolution or a linear layer, sparse or dense; its weights are copied.
    x : Tensor
        The input, (N, C, H, W) or (N, features).
    gradient : Tensor
        Of the output.
    threads : int
        To compute with.
    """

    def __init__(self, layer: nn.Module, x: Tensor, gradient: Tensor, threads: int) -> None:
        model = _between_norms(layer, x.shape[1], gradient)
        programs = StepPrograms(
            model.train(),
            (tuple(x.shape[1:]), torch.float32),
            Classification(),
            OptimizerSettings(),
            groups=False,
            passes=("planes",),
        )
        captured = programs.captured(len(x))
        program = self.program = programs.of(captured)
        offsets, size = _apart(program)
        self.runtime = Runtime(program, offsets, size, threads=threads)
        for name, array in captured.arrays().items():
            self.runtime.write(name, array)
        ways = program.phases[0], program.per_group
        self._forward = _places(program, range(ways[0]))
        self._backward = _places(program, range(*ways))
        first, last = (program.operators[it] for it in (self._forward[0], self._forward[-1]))
        back = [program.operators[it].arguments for it in self._backward]
        self._buffers = {
            "x": first.arguments["x"],
            "y": last.arguments["y"],
            # around a layer of whole channels stand operators that take and place them
            "dy": back[0].get("dy", back[0].get("x")),
            "dx": back[-1].get("dx", back[-1].get("y")),
        }
        self.runtime.write(self._name("x"), x.detach().numpy())
        self.runtime.write(self._name("dy"), gradient.numpy())

    def __call__(self) -> dict[str, float]:
        """Run the layer forward and backward; give the seconds of both."""
        start = time.perf_counter()
        for place in self._forward:
            self.runtime.run(place, place + 1)
        middle = time.perf_counter()
        for place in self._backward:
            self.runtime.run(place, place + 1)
        return {"forward": middle - start, "backward": time.perf_counter() - middle}

    @property
    def in_place(self) -> bool:
        """Whether all of input, output and their gradients are planes."""
        return all(self.program.buffers[it].margin > 0 for it in self._buffers.values())

    @property
    def operators(self) -> list[str]:
        """Names of the operators, in the order in which they run."""
        return [self.program.operators[it].name for it in (*self._forward, *self._backward)]

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the output and the gradient of the input, as they were computed last."""
        return self.runtime.read(self._name("y")), self.runtime.read(self._name("dx"))

    def weight_gradient(self) -> np.ndarray:
        """Return the gradient of the weight, or of a sparse layer's values."""
        [name] = [
            self.program.buffers[it.arguments[argument]].name
            for it in (self.program.operators[place] for place in self._backward)
            for argument in ("dw", "dvalues")
            if argument in it.arguments
        ]
        return self.runtime.read(name)

    def _name(self, what: str) -> str:
        return self.program.buffers[self._buffers[what]].name


def _between_norms(layer: nn.Module, inputs: int, gradient: Tensor) -> nn.Module:
    """Put a layer between two norms; outputs are averages over the image, one a class."""
    if gradient.dim() == 2:
        norms = nn.LayerNorm(inputs), nn.LayerNorm(gradient.shape[1])
        head: list[nn.Module] = []
    else:
        norms = group_norm(inputs), group_norm(gradient.shape[1])
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    parts = {"before": norms[0], "layer": layer, "behind": nn.Sequential(norms[1], *head)}
    return nn.Sequential(OrderedDict(parts))


def _places(program: Program, places: range) -> list[int]:
    """Return the places of the layer's operators: all between the norms, and copies if any."""
    return [place for place in places if _is_layers(program.operators[place])]


def _is_layers(operator: Operator) -> bool:
    return any(word in operator.name for word in ("conv2d", "linear", "channels", "copy"))


def _apart(program: Program) -> tuple[dict[int, int], int]:
    """Give each temporary buffer memory of its own, so that a call finds its inputs as they were.

    Returns
    -------
    offsets : dict of int to int
        In bytes, by buffer.
    size : int
        Bytes.
    """
    offsets, size = {}, 0
    for number in program.of_role("temporary"):
        offsets[number] = size
        size += -(-program.buffers[number].bytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, size
