"""The density of each layer: uniform, or Erdős–Rényi-Kernel (ERK)."""

from collections.abc import Mapping

from mest_fed.catalogue import DISTRIBUTIONS
from mest_fed.errors import not_allowed
from mest_fed.sparsity.layout import Layout

Layouts = Mapping[str, Layout]


def uniform(layouts: Layouts, density: float) -> dict[str, float]:
    """Give every layer the same density (clamped to what its scheme can hold)."""
    return {name: min(density, layout.max_density) for name, layout in layouts.items()}


def erk(layouts: Layouts, density: float) -> dict[str, float]:
    """Give each layer a density in proportion to sum(shape) / prod(shape).

    Erdős–Rényi-Kernel of Evci et al., "Rigging the Lottery" (2020), section 3: layers with few
    weights stay denser. Layers that would exceed what they can hold are filled, and the rest is
    scaled so that the active weights add up to ``density``.
    """
    budget = density * sum(layout.num_weights for layout in layouts.values())
    raw = {name: sum(layout.shape) / layout.num_weights for name, layout in layouts.items()}
    full: set[str] = set()
    while True:
        spent = sum(layouts[name].num_weights * layouts[name].max_density for name in full)
        open_layers = [name for name in layouts if name not in full]
        need = sum(raw[name] * layouts[name].num_weights for name in open_layers)
        scale = max(0.0, budget - spent) / need if need else 0.0
        over = {name for name in open_layers if raw[name] * scale > layouts[name].max_density}
        if not over:
            break
        full |= over
    return {
        name: layout.max_density if name in full else raw[name] * scale
        for name, layout in layouts.items()
    }


def layer_counts(layouts: Layouts, density: float, distribution: str = "uniform") -> dict[str, int]:
    """Return the number of active granules of each layer.

    Parameters
    ----------
    layouts : mapping of str to Layout
        The sparsifiable layers.
    density : float
        Active weights / weights over all of them, in (0, 1].
    distribution : str
        A name of :data:`~mest_fed.catalogue.DISTRIBUTIONS`.

    Raises
    ------
    InputError
        If the density is outside what the layouts can hold, or the distribution is unknown.
    """
    total = sum(layout.num_weights for layout in layouts.values())
    room = sum(layout.num_weights * layout.max_density for layout in layouts.values())
    limit = room / total if total else 1.0
    if not 0 < density <= limit + 1e-9:
        raise not_allowed("density", density, f"a number in (0, {limit:.4g}]")
    densities = DISTRIBUTIONS.build(distribution, layouts, density)
    return {name: layout.count_for(max(densities[name], 1e-9)) for name, layout in layouts.items()}
