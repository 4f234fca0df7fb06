"""Which implementation each product of a layer runs: by rule, or as timed once by the tuner."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch

from mest_fed.kernels import native
from mest_fed.kernels.storage import Channels, Kernels, StorageFormat, Strips
from mest_fed.kernels.weight import ConvGeometry, SparseWeight

#: Implementations: a dense weight for the moment, a smaller dense convolution over the active
#: channels, and the compiled kernels with source planes laid out in either way.
DENSE, CHANNELS = "dense", "channels"
IMPLEMENTATIONS = (DENSE, CHANNELS, *native.PLANES)

#: Densities from which the rule takes the dense weight: about where it overtakes the compiled
#: kernels on the machines that were measured (docs/figures.md).
DENSE_FROM = {"kernels": 0.35, "strips": 0.75, "rows": 0.4}


class Choice(NamedTuple):
    """Implementations of the forward product and of the two backward ones."""

    forward: str
    backward_input: str
    backward_values: str

    def __str__(self) -> str:
        """Return one name where all three agree."""
        return self.forward if len(set(self)) == 1 else "/".join(self)


EVERYTHING_DENSE = Choice(DENSE, DENSE, DENSE)
PADDED = Choice(*native.PLANES[:1] * 3)


@dataclass(frozen=True)
class Case:
    """What decides which implementation is fastest.

    Parameters
    ----------
    storage : str
        Name of the storage format, with its rows.
    shape : tuple of int
        Of the dense weight.
    size : tuple of int
        Height and width of the input.
    geometry : ConvGeometry
        Stride, padding, dilation.
    band : float
        Density, rounded up to one of :data:`BANDS`, so that a few more or fewer active weights are
        the same case.
    threads : int
        torch's.
    """

    storage: str
    shape: tuple[int, ...]
    size: tuple[int, int]
    geometry: ConvGeometry
    band: float
    threads: int


BANDS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Choices:
    """The choices that a model's sparse layers hold (``mest_fed.nn.tuning.set_choices``).

    Parameters
    ----------
    named : mapping of Case to Choice
        What the tuner found; the rule chooses for all other cases.
    dense : bool
        Take the dense weight everywhere, whatever is named.
    """

    named: Mapping[Case, Choice] = field(default_factory=dict)
    dense: bool = False

    def __deepcopy__(self, memo: dict[int, object]) -> "Choices":
        """Return the same object, which does not change: copies of a model share it."""
        return self


def _runs_here(choice: Choice) -> bool:
    """Say whether a choice, perhaps of another machine, can run on this one."""
    return native.available() if set(choice) & set(native.PLANES) else True


@cache
def band(density: float) -> float:
    """Return the band of a density."""
    return next((top for top in BANDS if density <= top * 1.1), 1.0)


def storage_name(storage: StorageFormat) -> str:
    """Return a short name of a storage format."""
    if isinstance(storage, Strips):
        return f"strips:{storage.rows}"
    return "kernels" if isinstance(storage, Kernels) else f"channels:{storage.axis}"


def case_of(weight: SparseWeight, size: tuple[int, int], geometry: ConvGeometry) -> Case:
    """Return the case of a weight under an input of some height and width."""
    threads = torch.get_num_threads()
    shape = (*weight.shape, 1, 1)[:4]
    return Case(storage_name(weight.storage), shape, size, geometry, band(weight.density), threads)


def rule(weight: SparseWeight) -> Choice:
    """Choose without timing, so that every machine of a kind computes the same bits."""
    if isinstance(weight.storage, Channels):
        return Choice(CHANNELS, CHANNELS, CHANNELS)
    if isinstance(weight.storage, Kernels):
        limit = DENSE_FROM["kernels"]
    else:
        limit = DENSE_FROM["strips" if weight.storage.rows > 1 else "rows"]
    if weight.density >= limit or not native.available():
        return EVERYTHING_DENSE
    return PADDED


def choose(
    weight: SparseWeight,
    size: tuple[int, int],
    geometry: ConvGeometry,
    choices: Choices | None = None,
) -> Choice:
    """Return the choice for a product: what ``choices`` names and can run here, else the rule's."""
    if choices is None:
        return rule(weight)
    if choices.dense:
        return EVERYTHING_DENSE
    found = choices.named.get(case_of(weight, size, geometry)) if choices.named else None
    return rule(weight) if found is None or not _runs_here(found) else found
