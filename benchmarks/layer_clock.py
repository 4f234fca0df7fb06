"""How long a training step spends in chosen layers, measured from inside the step."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


class LayerClock:
    """Seconds in each layer, forward and backward, since the last :meth:`reset`.

    The backward pass is bracketed at the layer's own node of the autograd graph, so nothing
    beside the layer is counted and layers may be followed by an in-place activation.

    Parameters
    ----------
    layers : iterable of nn.Module
        Layers whose output comes from one node, as that of ``Conv2d`` and ``Linear`` does.
    clock : callable
        Gives seconds.
    """

    def __init__(
        self, layers: Iterable[nn.Module], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self.layers = list(layers)
        self.seconds: list[float] = []
        self._started: dict[tuple[int, str], float] = {}
        for number, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(lambda *_, i=number: self._start(i, "forward"))
            layer.register_forward_hook(lambda *args, i=number: self._forward_done(i, args[-1]))
        self.reset()

    def reset(self) -> None:
        """Set all seconds to zero."""
        self.seconds = [0.0] * len(self.layers)

    def _start(self, layer: int, way: str) -> None:
        self._started[layer, way] = self._clock()

    def _stop(self, layer: int, way: str) -> None:
        self.seconds[layer] += self._clock() - self._started.pop((layer, way))

    def _forward_done(self, layer: int, output: Tensor) -> None:
        self._stop(layer, "forward")
        node: Any = output.grad_fn
        if node is not None:
            node.register_prehook(lambda *_: self._start(layer, "backward"))
            node.register_hook(lambda *_: self._stop(layer, "backward"))
