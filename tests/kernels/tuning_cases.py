"""Layers and made-up times for the tests of the tuner."""

import torch

from mest_fed.kernels import Channels, ConvGeometry, Kernels, SparseWeight, Strips
from mest_fed.kernels.tuning import LayerCase

PATTERNS = ((0, 1, 3, 4), (1, 2, 4, 5))


def layer_case(cut=None, active=6, size=(2, 4, 16, 16), shape=(8, 4, 3, 3), stride=1):
    """Return a layer whose first granules are active; its positions are not to be asked for."""
    cut = Strips(4) if cut is None else cut
    if isinstance(cut, Channels):
        width = shape[0] * shape[1] // shape[cut.axis == "in"]
        for side in shape[2:]:
            width *= side
    else:
        width = cut.rows if isinstance(cut, Strips) else len(cut.cells[0])
    slots = torch.arange(active, dtype=torch.int32)
    positions = torch.arange(active * width).view(active, width)  # of no meaning, but in range
    weight = SparseWeight(shape, slots, cut, lambda: positions)
    geometry = ConvGeometry((stride, stride), (shape[-1] // 2,) * 2 if len(shape) == 4 else (0, 0))
    return LayerCase(weight, torch.ones(active, width), geometry, size)


def fixed_times(times, seen=None):
    """Return a benchmark with times by implementation; it runs each once and notes their names."""

    def benchmark(candidates):
        for run in candidates.values():
            run()
        if seen is not None:
            seen.append(tuple(candidates))
        return {name: times[name] for name in candidates}

    return benchmark


CUTS = {
    "strips": Strips(4),
    "rows": Strips(1),
    "kernels": Kernels(PATTERNS),
    "out": Channels("out"),
    "in": Channels("in"),
}
