"""A plan: how a device of some budget trains; as words, as JSON, and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mest_fed.errors import InputError, not_allowed
from mest_fed.memory.activations import MemoryOptions
from mest_fed.memory.footprint import Footprint
from mest_fed.memory.step_bytes import TrainingShape
from mest_fed.strict_json import parse_json
from mest_fed.units import format_bytes


@dataclass(frozen=True)
class Plan:
    """How a device of some budget trains.

    Parameters
    ----------
    budget : int
        Bytes that training may add to the process.
    shape : TrainingShape
        Density, micro-batch, memory options and the rest.
    footprint : Footprint
        Predicted bytes by part; its total is within the budget.
    shortfall : int
        By how many bytes a plan's measured peak, which was over the budget, was above its
        prediction, so that this plan was made in its place; 0 in a first plan.
    """

    budget: int
    shape: TrainingShape
    footprint: Footprint
    shortfall: int = 0

    @property
    def density(self) -> float:
        """Target density."""
        return self.shape.density

    @property
    def micro_batch(self) -> int:
        """Images in one forward and backward pass."""
        return self.shape.micro_batch

    @property
    def memory(self) -> MemoryOptions:
        """What is recomputed, packed, consumed and frozen."""
        return self.shape.memory

    def measures(self) -> list[str]:
        """Say what the plan does to need little memory, a phrase each."""
        memory, said = self.memory, []
        if memory.recompute == "norms":
            said.append("normalised activations are computed again in backward")
        if memory.recompute == "segments":
            said.append("only block inputs are kept, the rest is computed again in backward")
        if memory.saved != "fp32":
            said.append(f"what is kept is kept as {memory.saved}")
        if memory.release_gradients:
            said.append("gradients go into the momentum at once")
        if not self.shape.momentum:
            said.append("no momentum")
        if memory.frozen:
            first = "block is" if memory.frozen == 1 else f"{memory.frozen} blocks are"
            said.append(f"the first {first} frozen")
        return said

    def in_words(self, of: str = "sparse weights") -> str:
        """Say the plan in a sentence or two; ``of`` is what its density is a share of."""
        parts = self.footprint.parts()
        largest = max(parts, key=lambda name: parts[name])
        share = "all" if self.density == 1 else f"{self.density:.1%}"
        measures = "; ".join(self.measures())
        return (
            f"Trains {share} of the {of} in batches of {self.shape.batch} "
            f"taken {self.micro_batch} at a time; predicted peak "
            f"{format_bytes(self.footprint.total)} of {format_bytes(self.budget)}, "
            f"{parts[largest] / max(1, self.footprint.total):.0%} of it {largest}."
            + (f" {measures[0].upper()}{measures[1:]}." if measures else "")
            + (f" {self.why_anew()}" if self.shortfall else "")
        )

    def why_anew(self) -> str:
        """Say why a plan that was made anew is not the first."""
        return (
            "Planned anew, since the measured peak of the plan before was over the budget and "
            f"{format_bytes(self.shortfall)} above its prediction."
        )

    def as_table(self) -> dict[str, Any]:
        """Return the plan as plain values, which :func:`read_plan` takes back."""
        return {
            "budget_bytes": self.budget,
            "predicted_peak_bytes": self.footprint.total,
            "shortfall_bytes": self.shortfall,
            "kind": "modelled",
            **{
                f.name: getattr(self.shape, f.name)
                for f in fields(self.shape)
                if f.name != "memory"
            },
            **asdict(self.memory),
            "parts": self.footprint.parts(),
        }

    def as_json(self) -> str:
        """Return the plan as one line of JSON."""
        return json.dumps(self.as_table())


_SHAPE = {f.name for f in fields(TrainingShape)} - {"memory"}
_MEMORY = {f.name for f in fields(MemoryOptions)}
_PARTS = {f.name for f in fields(Footprint)}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "density": (int, float),
    "distribution": str,
    "micro_batch": int,
    "batch": int,
    "momentum": bool,
    "optimizer": str,
    "proximal": bool,
    "recompute": str,
    "saved": str,
    "release_gradients": bool,
    "frozen": int,
    "segments": str,
}
#: Keys that plans of earlier versions lack, and what those plans do.
_LATER: dict[str, Any] = {
    "segments": "",
    "optimizer": "sgd",
    "proximal": False,
    "shortfall_bytes": 0,
}
#: Keys of earlier versions, and what they are called now.
_RENAMED = {"consume": "release_gradients"}


def read_plan(text: str, source: str = "plan") -> Plan:
    """Read a plan from JSON, as :meth:`Plan.as_json` and ``mest-fed plan --json`` write it.

    Parameters
    ----------
    text : str
        The JSON.
    source : str
        Where it comes from, for error messages.

    Raises
    ------
    InputError
        If it is no JSON, a key is missing or a value not possible: names it.
    """
    table = parse_json(text, source, dict)
    for key, value in _LATER.items():
        table.setdefault(key, value)
    for old, key in _RENAMED.items():
        if old in table:
            table.setdefault(key, table[old])
    missing = sorted((_SHAPE | _MEMORY | {"budget_bytes", "parts"}) - set(table))
    if missing:
        raise InputError(f"{source} has no {missing[0]}; allowed: what mest-fed plan --json writes")
    for key, kind in _TYPES.items():
        _check(table[key], kind, f"{source}: {key}")
    try:
        memory = MemoryOptions(**{key: table[key] for key in _MEMORY})
        shape = TrainingShape(**{key: table[key] for key in _SHAPE}, memory=memory)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    plan = Plan(
        _size(table["budget_bytes"], f"{source}: budget_bytes"),
        shape,
        _parts(table, source),
        _size(table["shortfall_bytes"], f"{source}: shortfall_bytes", 0),
    )
    if plan.footprint.total > plan.budget:
        raise InputError(
            f"{source}: its parts sum to {plan.footprint.total} bytes, over its budget_bytes = "
            f"{plan.budget}; allowed: a plan that fits"
        )
    return plan


def _parts(table: Mapping[str, Any], source: str) -> Footprint:
    parts = table["parts"]
    if not isinstance(parts, dict) or set(parts) != _PARTS:
        raise not_allowed(f"{source}: parts", parts, f"bytes of {', '.join(sorted(_PARTS))}")
    return Footprint(**{k: _size(v, f"{source}: parts.{k}", 0) for k, v in parts.items()})


def _size(value: Any, key: str, least: int = 1) -> int:
    _check(value, int, key)
    if value < least:
        raise not_allowed(key, value, f"a whole number from {least}")
    return int(value)


def _check(value: Any, kind: type | tuple[type, ...], key: str) -> None:
    is_bool = isinstance(value, bool)
    if not isinstance(value, kind) or (is_bool and kind is not bool):
        names = {bool: "true or false", str: "a text", int: "a whole number"}
        allowed = names.get(kind, "a number") if isinstance(kind, type) else "a number"
        raise not_allowed(key, value, allowed)
