"""The density of each layer: uniform, or Erdős–Rényi-Kernel (ERK)."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from numbers import Real

from mest_fed.catalogue import DISTRIBUTIONS
from mest_fed.errors import InputError, not_allowed
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


def matches(pattern: str, name: str) -> bool:
    """Say whether a pattern (``fnmatch``) names a module or one that it is in.

    ``encoder.*.linear1`` names these layers, and ``encoder`` all that are in it; ``*`` stands for
    dots, too.
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def parse_distribution(text: str) -> tuple[str, dict[str, float]]:
    """Read a distribution: a name, which densities of single layers may follow.

    ``erk`` gives ``("erk", {})``, and ``erk, fc*:0.3`` gives ``("erk", {"fc*": 0.3})``.

    Raises
    ------
    InputError
        If the name is unknown, or a density is none.
    """
    name, *rest = (part.strip() for part in text.split(","))
    DISTRIBUTIONS.check(name)
    densities = {}
    for part in rest:
        pattern, _, number = part.rpartition(":")
        try:
            densities[pattern.strip()] = float(number)
        except ValueError:
            raise not_allowed("distribution", text, "NAME, PATTERN:DENSITY, ...") from None
    return name, densities


def format_distribution(name: str, densities: Mapping[str, float]) -> str:
    """Write what :func:`parse_distribution` reads."""
    return ", ".join([name, *(f"{pattern}:{number}" for pattern, number in densities.items())])


def layer_counts(layouts: Layouts, density: float, distribution: str = "uniform") -> dict[str, int]:
    """Return the number of active granules of each layer.

    Parameters
    ----------
    layouts : mapping of str to Layout
        The sparsifiable layers.
    density : float
        Active weights / weights over all of them that have no density of their own, in (0, 1].
    distribution : str
        A name of :data:`~mest_fed.catalogue.DISTRIBUTIONS`; densities of single layers may follow,
        see :func:`parse_distribution`. The first pattern that names a layer decides.

    Raises
    ------
    InputError
        If a density is outside what the layouts can hold, or the distribution is unknown.
    """
    kind, own = parse_distribution(distribution)
    densities: dict[str, float] = {}
    for name, layout in layouts.items():
        found = next((number for pattern, number in own.items() if matches(pattern, name)), None)
        if found is not None:
            if not 0 < found <= layout.max_density + 1e-9:
                allowed = f"a number in (0, {layout.max_density:.4g}]"
                raise not_allowed(f"density of {name}", found, allowed)
            densities[name] = found
    others = {name: layout for name, layout in layouts.items() if name not in densities}
    total = sum(layout.num_weights for layout in others.values())
    room = sum(layout.num_weights * layout.max_density for layout in others.values())
    limit = room / total if total else 1.0
    if not 0 < density <= limit + 1e-9:
        raise not_allowed("density", density, f"a number in (0, {limit:.4g}]")
    given = DISTRIBUTIONS.build(kind, others, density)
    for name, layout in others.items():
        _check_given(kind, name, given, layout)
    densities |= {name: given[name] for name in others}
    return {name: layout.count_for(max(densities[name], 1e-9)) for name, layout in layouts.items()}


def _check_given(kind: str, name: str, given: object, layout: Layout) -> None:
    """Refuse what a distribution gives for a layer, if it is no density that the layer can have."""
    who = f"{DISTRIBUTIONS.key} = {kind!r}"
    if not isinstance(given, Mapping) or name not in given:
        raise InputError(f"{who} gives no density of {name}; allowed: a mapping with all layers")
    found, most = given[name], layout.max_density
    if not isinstance(found, Real) or not 0 <= float(found) <= most + 1e-9:
        raise InputError(
            f"{who} gives {name} the density {found!r}; allowed: a number in (0, {most:.4g}]"
        )
