"""How fast a sparse training step could be: measured shares of the dense one, Amdahl's law."""

from collections.abc import Sequence

from harness import Row, Timings
from layer_clock import LayerClock
from torch import Tensor, nn
from train_contestants import Step

from mest_fed.devices import training_flops
from mest_fed.nn import SparseLayer, sparsifiable


def clocked_step(step: Step, clock: LayerClock, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Run a step; give the seconds of each clocked layer, of the optimizer, and of all the rest."""
    clock.reset()
    parts = step(images, labels)
    layers = {f"layer {i}": seconds for i, seconds in enumerate(clock.seconds)}
    rest = parts["forward"] + parts["backward"] - sum(layers.values())
    return layers | {"optimizer": parts["optimizer"], "rest": rest}


def modelled_limits(clocked: Timings, dense: nn.Module, sparse: nn.Module) -> Row:
    """Return measured shares of the dense step, and what they allow a sparse one (modelled).

    Parameters
    ----------
    clocked : dict of str to Timing
        Of :func:`clocked_step` with the layers of ``sparsifiable(dense)``.
    dense, sparse : nn.Module
        The model before and after it was made sparse.
    """
    densities = layer_densities(dense, sparse)
    seconds = [clocked[f"layer {i}"].median for i in range(len(densities))]
    optimizer = clocked["optimizer"].median
    total = sum(seconds) + optimizer + clocked["rest"].median
    shares = [second / total for second in seconds]
    before, after = (sum(p.numel() for p in model.parameters()) for model in (dense, sparse))
    return {
        "measured_share": round(sum(shares), 4),
        "measured_optimizer_share": round(optimizer / total, 4),
        "modelled_possible_by_layers": round(amdahl(shares, densities), 3),
        "modelled_possible": round(
            amdahl([*shares, optimizer / total], [*densities, after / before]), 3
        ),
    }


def layer_densities(dense: nn.Module, sparse: nn.Module) -> list[float]:
    """Return the density of each layer that can be sparse, 1 where it stayed dense."""
    modules = dict(sparse.named_modules())
    found = [modules[name] for name in sparsifiable(dense)]
    return [layer.mask.density if isinstance(layer, SparseLayer) else 1.0 for layer in found]


def amdahl(shares: Sequence[float], left: Sequence[float]) -> float:
    """Return the speed-up when of each share of the time only a fraction is left."""
    return 1 / (1 - sum(share * (1 - part) for share, part in zip(shares, left, strict=True)))


def operations(dense: nn.Module, sparse: nn.Module, image: tuple[int, int, int]) -> Row:
    """Return the achieved density and the ratio of operations (modelled)."""
    before, after = (training_flops(model, image) for model in (dense, sparse))
    layers = [module for module in sparse.modules() if isinstance(module, SparseLayer)]
    active = sum(layer.layout.active_weights(layer.slots) for layer in layers)
    weights = sum(layer.layout.num_weights for layer in layers)
    ratio = before.dense_flops / (after.dense_flops + after.sparse_flops)
    return {
        "density": round(active / weights, 4) if layers else 1.0,
        "modelled_flops_ratio": round(ratio, 3),
    }
