"""The tuner: times the implementations of one layer's products beside each other, on this machine.

Times are measured. What is timed does not depend on them, so that only the choice may differ from
one machine, or one run, to the next.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mest_fed.kernels import functions, native
from mest_fed.kernels.choice import CHANNELS, DENSE, Case, Choice, case_of, rule
from mest_fed.kernels.functions import How
from mest_fed.kernels.storage import Channels
from mest_fed.kernels.weight import ConvGeometry, SparseWeight

PRODUCTS = Choice._fields

#: Share by which an implementation must beat the rule's: less than that is noise.
MARGIN = 0.03
#: Rounds in which all candidates of a product run once, and the seconds that decide how many.
MOST_ROUNDS, SECONDS = 7, 0.1

#: Floats of a vector, by variant of the compiled kernels.
_LANES = {"avx512bf16": 16, "avx512": 16, "avx2": 8}

Candidates = Mapping[str, Callable[[], object]]
#: Gives each candidate's seconds.
Benchmark = Callable[[Candidates], Mapping[str, float]]

#: Product -> implementation -> milliseconds.
Milliseconds = dict[str, dict[str, float]]


@dataclass(frozen=True)
class LayerCase:
    """A layer as the tuner sees it.

    Parameters
    ----------
    weight : SparseWeight
        Without a hook for the dense gradient.
    values : Tensor
        Active values.
    geometry : ConvGeometry
        Stride, padding, dilation.
    size : tuple of int
        Shape of the input, (n, in, h, w) or (n, in).
    """

    weight: SparseWeight
    values: Tensor
    geometry: ConvGeometry
    size: tuple[int, ...]

    @property
    def case(self) -> Case:
        """The case, at torch's present number of threads."""
        return case_of(self.weight, self._plane, self.geometry)

    @property
    def out_size(self) -> tuple[int, ...]:
        """Shape of the output."""
        if len(self.size) == 2:
            return self.size[0], self.weight.shape[0]
        kernel = (self.weight.shape[2], self.weight.shape[3])
        return self.size[0], self.weight.shape[0], *self.geometry.out_size(self._plane, kernel)

    @property
    def _plane(self) -> tuple[int, int]:
        return (self.size[2], self.size[3]) if len(self.size) == 4 else (1, 1)


@dataclass(frozen=True)
class Timing:
    """What the tuner found for a layer.

    Parameters
    ----------
    choice : Choice
        The fastest, or the rule's where none is faster by more than noise.
    milliseconds : dict
        Product -> implementation -> median time; measured.
    """

    choice: Choice
    milliseconds: Milliseconds = field(default_factory=dict)


def candidates(layer_case: LayerCase, product: str) -> tuple[str, ...]:
    """Return the implementations of a product that may differ in speed."""
    if isinstance(layer_case.weight.storage, Channels):
        return DENSE, CHANNELS
    if native.variant() is None:
        return (DENSE,)
    return DENSE, *(native.PLANES if _planes_differ(layer_case, product) else native.PLANES[:1])


def _planes_differ(layer_case: LayerCase, product: str) -> bool:
    """Say whether source planes can lie padded at all; see ``arrange`` in native/scratch.cpp."""
    if len(layer_case.size) == 2 or layer_case.weight.shape[3] == 1:
        return False
    if layer_case.geometry.stride[1] != 1:
        return False
    lanes = _LANES.get(native.variant() or "", 4)
    width, out_width = layer_case.size[3], layer_case.out_size[3]
    if product == "forward":
        return out_width >= lanes
    whole = out_width >= lanes and out_width % lanes == 0
    # The gradient of the input may be computed as a forward product over the input's own plane.
    return whole or (product == "backward_input" and width >= lanes)


def time_in_turn(
    candidates: Candidates, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return each candidate's median seconds.

    All run once to warm up, then in turn, so that whatever slows the machine slows all: seven
    times where they are quick, fewer where that would take long.
    """

    def seconds(run: Callable[[], object]) -> float:
        start = clock()
        run()
        return clock() - start

    warm_up = sum(seconds(run) for run in candidates.values())
    rounds = MOST_ROUNDS if warm_up <= 0 else int(min(MOST_ROUNDS, max(1.0, SECONDS / warm_up)))
    laps: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            laps[name].append(seconds(run))
    return {name: statistics.median(lap) for name, lap in laps.items()}


def winner(seconds: Mapping[str, float], usual: str) -> str:
    """Return the fastest, or the usual one if that is slower by no more than noise."""
    fastest = min(seconds, key=lambda name: seconds[name])
    return fastest if seconds[fastest] < (1 - MARGIN) * seconds[usual] else usual


@torch.no_grad()
def tune_layer(
    layer_case: LayerCase, generator: torch.Generator, benchmark: Benchmark = time_in_turn
) -> Timing:
    """Time each implementation of each product of a layer.

    Parameters
    ----------
    layer_case : LayerCase
        The layer, in float32 on the CPU.
    generator : torch.Generator
        Draws the input and the gradient of the output.
    benchmark : callable
        What times.
    """
    x = torch.randn(layer_case.size, generator=generator)
    grad = torch.randn(layer_case.out_size, generator=generator)
    usual = rule(layer_case.weight)
    names, milliseconds = [], {}
    for product, default in zip(PRODUCTS, usual, strict=True):
        implementations = candidates(layer_case, product)
        seconds = benchmark(
            {name: _run(layer_case, product, name, (x, grad)) for name in implementations}
        )
        names.append(winner(seconds, default))
        milliseconds[product] = {name: 1000 * seconds[name] for name in implementations}
    return Timing(Choice(*names), milliseconds)


def _run(
    layer_case: LayerCase, product: str, name: str, tensors: tuple[Tensor, Tensor]
) -> Callable[[], object]:
    """Return one product of a layer, ready to run."""
    x, grad = tensors
    weight, values = layer_case.weight, layer_case.values
    how = How(layer_case.geometry, Choice(name, name, name))
    if product == "forward":
        return lambda: functions.forward(x, values, None, weight, how)
    if product == "backward_input":
        return lambda: functions.backward_input(grad, x, values, weight, how)
    return lambda: functions.backward_values(grad, x, values, weight, how)
