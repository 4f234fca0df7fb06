"""The sparse-training methods, each as its difference from its parent."""

import math
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Self

import numpy as np

from mest_fed.catalogue import METHODS
from mest_fed.errors import InputError
from mest_fed.registry import share_of
from mest_fed.rng import numpy_generator
from mest_fed.sparsity.arrays import Floats, norms
from mest_fed.sparsity.layout import Layout
from mest_fed.sparsity.mask import Scores
from mest_fed.sparsity.mutation import Bounds, Method, Proposal
from mest_fed.sparsity.schedules import Constant, CosineDecay, Schedule, Stages
from mest_fed.sparsity.schemes import Unstructured


@dataclass(frozen=True)
class Dense(Method):
    """Dense layers, which have no mask."""

    sparse = False


@dataclass(frozen=True)
class HeteroFL(Dense):
    """HeteroFL (Diao et al., ICLR 2021): dense models of nested widths.

    A device trains the first channels of each layer, as many as its memory allows; the server
    averages each weight over the devices that hold it (section 3.1; here weighted by examples).
    Everything else is as in dense training, of which this is the difference.
    """

    cuts_width = True


@dataclass(frozen=True)
class Static(Method):
    """The initial mask to the end."""


@dataclass(frozen=True)
class Snip(Static):
    """Single-shot pruning by connection sensitivity (SNIP: Lee et al. 2019), in a federation.

    Before the first round some devices are sent the dense initial model. Each computes ``s_j = |w_j
    dL/dw_j|`` (equation 6) on one batch of its own examples. The server averages the scores,
    weighted by examples, as SSFL does (Ohib et al. 2024), and the best of each layer are active to
    the end. A granule's score is the sum of its weights'. How many of a layer are active is said by
    ``sparsity.distribution``, so that plans hold; SNIP itself ranks all layers together.

    A device takes part in the scoring where its budget holds a dense step, in micro-batches.
    """

    scores_first = True


@dataclass(frozen=True)
class Set(Method):
    """Sparse Evolutionary Training (Mocanu et al. 2018): drop by magnitude, grow at random.

    Parameters
    ----------
    fraction : Schedule
        Share of the active granules that a mutation replaces.
    """

    fraction: Schedule = field(default=Constant(0.3))

    def bounds(self, progress: float) -> Bounds:
        """Replace ``fraction`` of the active granules; the ceiling is hard."""
        return Bounds(floor=1 - self.fraction(progress))


@dataclass(frozen=True)
class RigL(Set):
    """Rigging the Lottery (Evci et al. 2020): grow where the dense gradient is largest.

    Parameters
    ----------
    fraction : Schedule
        Share of the active granules that a mutation replaces; by default it decays from 30%.
    """

    fraction: Schedule = field(default=CosineDecay(0.3))

    needs_dense_gradient = True

    def growth_order(
        self,
        layout: Layout,
        generator: np.random.Generator,
        dense_gradient: Floats | None = None,
    ) -> Proposal:
        """Propose each granule's slot of largest gradient norm, scored by that norm."""
        if dense_gradient is None:
            raise ValueError("RigL grows by the dense gradient, and none was given")
        return layout.best_slots(dense_gradient)


@dataclass(frozen=True)
class FedDst(RigL):
    """Federated Dynamic Sparse Training (Bibikar et al., AAAI 2022, algorithm 1).

    In a round that mutates each client drops the share ``alpha_r = alpha / 2 (1 + cos(pi r /
    R_end))`` of its weights by magnitude alone, grows as many where its own dense gradient is
    largest, at zero, and trains on. It sends values and its own mask. The server averages each
    weight over the clients that hold it, weighted by examples, and keeps the largest weights of
    each layer, as many as the target: :class:`~mest_fed.server.aggregation.masked.MaskedMean` and
    :meth:`~mest_fed.server.global_model.GlobalModel.adopt_masks`.

    ``sparsity.period`` is R_adj as a share of the run. The authors' program adjusts after the last
    local step, so that nothing trains what it grew, and multiplies by alpha twice; this does
    neither.

    Parameters
    ----------
    fraction : Schedule
        alpha_r. By default alpha = 0.5 and R_end half of the run, the defaults of the authors'
        program; ``feddst:0.01`` is what its CIFAR examples have.
    """

    fraction: Schedule = field(default=CosineDecay(0.5, end=0.5))


@cache
def feddst_of(alpha: str) -> type[FedDst]:
    """Return the method ``feddst:ALPHA``.

    Raises
    ------
    InputError
        If alpha is no number in (0, 1].
    """
    share = share_of(METHODS.key, "feddst", alpha)

    @dataclass(frozen=True)
    class OfAlpha(FedDst):
        fraction: Schedule = field(default=CosineDecay(share, end=0.5))

    return OfAlpha


@dataclass(frozen=True)
class MestEM(Set):
    """MEST, Elastic Mutation: replace 20%, 10%, then none of the active granules; hard bound.

    Parameters
    ----------
    gradient_weight : float
        Lambda of the importance |w| + lambda |g|.
    fraction : Schedule
        Share of the active granules that a mutation replaces.
    """

    gradient_weight: float = 0.5
    fraction: Schedule = field(default=Stages(0.2, 0.1))

    def importance(self, values: Floats, gradients: Floats | None) -> Scores:
        """Score active granules: ||w|| + lambda ||g||, norms over the granule's values.

        For unstructured sparsity this is MEST's |w| + lambda |g| (section 3).
        """
        score = super().importance(values, gradients)
        if self.gradient_weight and gradients is not None:
            score = score + np.float32(self.gradient_weight) * norms(gradients)
        return score


@dataclass(frozen=True)
class MestEMS(MestEM):
    """MEST, Elastic Mutation with a soft memory bound (EM&S): grow above the target, then drop.

    New granules are ranked together with the old ones only after they have trained.

    Parameters
    ----------
    overshoot : Schedule
        Extra active granules as a share of the target; MEST uses 50% -> 25% -> 0 at 90% sparsity.
    """

    overshoot: Schedule = field(default=Stages(0.5, 0.25))

    def bounds(self, progress: float) -> Bounds:
        """Drop to the target, grow above it."""
        return Bounds(ceiling=1 + self.overshoot(progress))

    @classmethod
    def for_density(cls, density: float, **options: Any) -> Self:
        """Overshoot by 100% -> 50% at a density of 5% and below, as MEST does at 95% sparsity."""
        if density <= 0.05:
            options = {"overshoot": Stages(1.0, 0.5), **options}
        return super().for_density(density, **options)


def build_method(
    name: str, density: float, gradient_weight: float | None = None, *, gradients: bool = True
) -> Method:
    """Build a method by name, and try its hooks on a small layer.

    Parameters
    ----------
    name : str
        A name of :data:`~mest_fed.catalogue.METHODS`. ``dense`` trains dense layers.
    density : float
        Target density, of which some methods make their options.
    gradient_weight : float, optional
        Lambda of the importance, for methods that have one; the method's own if left out.
    gradients : bool
        Whether importance will be given gradients, as where masks mutate on clients.

    Raises
    ------
    InputError
        If the name is unknown, or a hook of a user's own raises or gives what it should not.
    """
    options: dict[str, float] = {}
    if gradient_weight is not None and METHODS.takes(name, "gradient_weight"):
        options = {"gradient_weight": gradient_weight}
    kind = METHODS.find(name)
    if isinstance(kind, type) and issubclass(kind, Method):
        kind = partial(kind.for_density, density)
    method: Method = METHODS.call(name, kind, **options)
    METHODS.call(name, partial(_tried, method, name, gradients))
    return method


def _tried(method: Method, name: str, gradients: bool) -> Method:
    """Call each hook as a run does; an InputError says what is wrong with what it gives."""
    key = f"{METHODS.key} = {name!r}"
    for step in range(5):
        bounds = method.bounds(step / 4)
        if not (isinstance(bounds, Bounds) and 0 <= bounds.floor <= 1 <= bounds.ceiling < math.inf):
            raise InputError(
                f"{key}: bounds({step / 4}) gives {bounds!r}; allowed: Bounds with a floor in "
                "[0, 1] and a ceiling from 1"
            )
    layout = Unstructured((4, 4))
    values = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
    importance = method.importance(values, values if gradients else None)
    _check_scores(f"{key}: importance", importance, len(values))
    dense = np.ones(layout.shape, np.float32) if method.needs_dense_gradient else None
    slots, scores = method.growth_order(layout, numpy_generator(0, "try"), dense)
    _check_scores(f"{key}: growth_order", scores, layout.num_granules)
    if slots.shape != scores.shape or slots.dtype.kind not in "iu":
        raise InputError(
            f"{key}: growth_order gives slots of shape {tuple(slots.shape)} and {slots.dtype}; "
            f"allowed: ({layout.num_granules},), one for each granule, whole numbers"
        )
    return method


def _check_scores(hook: str, scores: Any, count: int) -> None:
    array = isinstance(scores, np.ndarray)
    if not array or scores.shape != (count,) or not np.isfinite(scores).all():
        found = f"shape {scores.shape}" if array else repr(scores)
        raise InputError(
            f"{hook} gives {found}; allowed: a NumPy array of finite scores, shape "
            f"({count},), one for each of the granules"
        )
