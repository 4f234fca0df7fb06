"""The section of sparse training: which method, scheme, density and mutation."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from mest_fed.catalogue import DISTRIBUTIONS, METHODS, SCHEMES, Growth, MutationPlace
from mest_fed.config.base import (
    PATTERNS,
    Form,
    Section,
    as_text,
    format_mix,
    one_of,
    parse_mix,
    parse_names,
)


def mutates_on_clients_alone(method: str) -> bool:
    """Whether a method's masks cannot mutate on the server, which has no dense gradients.

    Raises
    ------
    InputError
        If there is no such method.
    """
    return getattr(METHODS.find(method), "needs_dense_gradient", False)


def scores_first(method: str) -> bool:
    """Whether clients score the weights by gradients before the first round; as above."""
    return getattr(METHODS.find(method), "scores_first", False)


def cuts_width(method: str) -> bool:
    """Whether a method gives devices narrower models; InputError if there is no such method."""
    return getattr(METHODS.find(method), "cuts_width", False)


#: Below this a layer of ten thousand weights keeps none but the least that it must.
LEAST_DENSITY = 1e-4


class SparsitySection(Section):
    """Sparse training: method, scheme, density and mutation."""

    method: Annotated[str, one_of(METHODS)] = "mest-ems"
    """How masks mutate: which weights are dropped, which are grown, and how many."""
    mutation: Annotated[str, one_of(MutationPlace)] = "server"
    """Where masks mutate: on each client while it trains, or on the server between rounds."""
    growth: Annotated[str, one_of(Growth)] = "seeded"
    """With ``mutation = "client"``: whether all clients draw the same new weights in a round
    (``seeded``), or each its own (``private``)."""
    scheme: Annotated[str, one_of(SCHEMES)] = "block"
    """How a weight tensor is divided into granules, which are active or not as a whole."""
    density: Annotated[float, Field(ge=LEAST_DENSITY, le=1)] = 0.1
    """Active weights as a share of all weights of the layers that may be sparse."""
    distribution: Annotated[str, one_of(DISTRIBUTIONS)] = "uniform"
    """How the active weights are distributed over the layers."""
    include: Annotated[str, Form(PATTERNS)] = ""
    """Patterns of the layers that may be sparse, such as ``encoder.*``; empty for all. Also as a
    TOML list."""
    exclude: Annotated[str, Form(PATTERNS)] = ""
    """Patterns of modules that stay dense, with everything in them; also as a TOML list."""
    layers: Annotated[str, Form("PATTERN:DENSITY, ..., or nothing")] = ""
    """Densities of single layers, such as ``stage1.*:0.3, hidden:0.05``, also as a TOML table
    ``[sparsity.layers]``. The first pattern that names a layer decides; ``density`` is that of the
    other layers. It holds in every tier."""
    period: Annotated[float, Field(gt=0, le=1)] = 0.03125
    """Progress between mutations; MEST: 5 of 160 epochs."""
    gradient_weight: Annotated[float, Field(ge=0)] = 0.5
    """Lambda of the importance |w| + lambda |g|, of ``mest-em`` and ``mest-ems``; others rank by
    magnitude alone."""

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _names_as_text(cls, value: Any) -> Any:
        return as_text(value)

    @field_validator("layers", mode="before")
    @classmethod
    def _tableas_text(cls, value: Any) -> Any:
        return format_mix(value) if isinstance(value, dict) else value

    @field_validator("layers")
    @classmethod
    def _densities(cls, value: str) -> str:
        for pattern, density in parse_mix(value).items():
            try:
                ok = LEAST_DENSITY <= float(density) <= 1
            except ValueError:
                ok = False
            if not ok:
                raise ValueError(
                    f"the density of {pattern} is {density!r}; allowed: a number from "
                    f"{LEAST_DENSITY:g} to 1"
                )
        return value

    @property
    def included(self) -> tuple[str, ...]:
        """The patterns of ``include``."""
        return parse_names(self.include)

    @property
    def excluded(self) -> tuple[str, ...]:
        """The patterns of ``exclude``."""
        return parse_names(self.exclude)

    @property
    def densities(self) -> str:
        """The distribution with the densities of single layers, as the sparsifier reads it."""
        return f"{self.distribution}, {self.layers}" if self.layers else self.distribution
