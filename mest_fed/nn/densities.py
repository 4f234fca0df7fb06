"""How dense each layer of a model is, and why."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mest_fed.nn.eligible import Reason, Selection, is_packed, places, reasons_of
from mest_fed.nn.layers import SparseLayer


@dataclass(frozen=True)
class LayerDensity:
    """A layer's weights, and how many of them are active.

    Biases, and scales of normalisations, are not counted: only parameters of two dimensions or
    more. A weight that several layers share is counted with the first of them.

    Parameters
    ----------
    name : str
        In the model; of a module with others in it, the name of its parameter.
    kind : str
        Name of the class of the layer, or of the module that holds the parameter.
    weights : int
        All weights.
    active : int
        Those that are not fixed at zero by a mask.
    reason : Reason or None
        Why it is dense; None for a sparse layer.
    """

    name: str
    kind: str
    weights: int
    active: int
    reason: Reason | None

    @property
    def density(self) -> float:
        """Active weights / weights; 1 without any."""
        return self.active / self.weights if self.weights else 1.0


def layer_densities(
    model: nn.Module,
    keep_dense: Collection[str] = (),
    *,
    include: Collection[str] = (),
    exclude: Collection[str] = (),
) -> list[LayerDensity]:
    """List the layers that hold weights: how dense each is, and why it is dense.

    The sum of ``active`` over that of ``weights`` is the density of the whole model.

    Parameters
    ----------
    model : nn.Module
        Any, dense or sparse.
    keep_dense : collection of str
        An earlier name of ``exclude``; both count.
    include : collection of str
        Patterns (``fnmatch``) of the layers that may be sparse, or of modules that they are in;
        none for all.
    exclude : collection of str
        Patterns of modules that stay dense with everything in them.

    Raises
    ------
    InputError
        As :func:`~mest_fed.nn.sparsifiable`.
    """
    return densities(model, reasons_of(model, Selection(keep_dense, include, exclude)))


def densities(model: nn.Module, reasons: Mapping[str, Reason]) -> list[LayerDensity]:
    """Count weights layer by layer, with reasons that are known already."""
    counted, rows = set[int](), list[LayerDensity]()
    found = places(model)
    packed = [(name, place) for name, place in found.items() if is_packed(place)]

    def add(
        name: str, module: nn.Module, weights: Iterable[Tensor], other: Reason = Reason.KIND
    ) -> None:
        new = {id(it): it.numel() for it in weights if it.dim() > 1 and id(it) not in counted}
        counted.update(new)
        total = sum(new.values())
        if total or name in reasons:
            reason = reasons.get(name, other)
            rows.append(LayerDensity(name, type(module).__name__, total, total, reason))

    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            weights, active = module.layout.num_weights, module.active_weights
            rows.append(LayerDensity(name, type(module).__name__, weights, active, None))
            continue
        inside = [(inner, place.layer) for inner, place in packed if place.owner is module]
        for inner, layer in inside:
            add(inner, module, layer.parameters())
        if name in reasons or (name and next(module.children(), None) is None):
            # A layer's parametrizations are its children, and hold its weight.
            add(name, module, module.parameters(recurse=name in reasons))
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            add(f"{name}.{leaf}".lstrip("."), module, [parameter], Reason.PARAMETER)
    return rows


def whole_density(rows: Collection[LayerDensity]) -> float:
    """Return active weights / weights over all layers of a model; 1 without any.

    Parameters
    ----------
    rows : collection of LayerDensity
        As from :func:`layer_densities`.
    """
    weights = sum(row.weights for row in rows)
    return sum(row.active for row in rows) / weights if weights else 1.0
