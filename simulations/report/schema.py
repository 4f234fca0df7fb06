"""What a run folder holds, as typed rows.

Shares (accuracy, density) are in [0, 1], times in seconds, sizes in bytes, energy in joules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mest_fed.schema import FailureKind, TaskStatus

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The distribution of the clients' accuracy on their held-out shares (measured)."""

    mean: Share
    min: Share
    p10: Share
    median: Share
    p90: Share
    max: Share


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One line of ``rounds.jsonl``; round 0 is the model before training.

    Bytes and energy are of this round alone; both clocks are cumulative.
    """

    round: Count
    accuracy: Share | None = None
    loss: float | None = None
    client_accuracy: Spread | None = None
    train_loss: float | None = None
    density: Share
    bytes_up: Count
    bytes_down: Count
    virtual_seconds: Amount
    wall_seconds: Amount
    trained: Count
    failed: Count
    rejected: Count
    energy_joules: Amount


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One line of ``clients.jsonl``: one client's part in one round; times are modelled.

    ``start_seconds`` is the virtual time at which the device began. Older runs have neither it nor
    ``failure``.
    """

    round: Count
    partition: Count
    device: str
    status: TaskStatus
    failure: FailureKind | None = None
    reason: str | None = None
    start_seconds: Amount | None = None
    bytes_down: Count
    bytes_up: Count
    download_seconds: Amount
    train_seconds: Amount
    upload_seconds: Amount
    energy_joules: Amount

    @property
    def seconds(self) -> float:
        """Download, training and upload together (modelled)."""
        return self.download_seconds + self.train_seconds + self.upload_seconds


@dataclass(frozen=True, kw_only=True)
class Watts:
    """What a whole device draws while it computes, and while it sends or receives."""

    compute: Amount
    radio: Amount


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The devices of one profile, which train under one plan."""

    profile: str
    title: str
    clients: Count
    budget_bytes: Count
    predicted_peak_bytes: Count
    measured_peak_bytes: Count | None = None
    density: Share
    micro_batch: Count
    parts: Mapping[str, Count]
    plan: str
    watts: Watts | None = None

    @property
    def peak_bytes(self) -> int:
        """The measured peak where there is one, the predicted one otherwise."""
        return self.measured_peak_bytes or self.predicted_peak_bytes


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the final global model; a dense one has density 1."""

    name: str
    weights: Count
    density: Share


@dataclass(frozen=True, kw_only=True)
class Summary:
    """``summary.json``, written when a run has ended."""

    preset: str
    seed: int
    rounds: Count
    dataset: str
    model: str
    method: str
    mutation: str | None
    scheme: str
    target_density: Share
    achieved_density: Share
    final_accuracy: Share | None
    final_client_accuracy: Spread | None
    bytes_up: Count
    bytes_down: Count
    virtual_seconds: Amount
    wall_seconds: Amount
    clients_trained: Count
    clients_failed: Count
    clients_rejected: Count
    over_budget: Count
    energy_joules: Amount
    tiers: tuple[Tier, ...]
    layers: tuple[Layer, ...]
    dense_bytes: Count
    model_sha256: str
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """Where a choice of kernels holds: a shape of weight under a size of input."""

    size: tuple[Count, Count]
    band: Share


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One row of ``kernels.json``: implementations by product, and the times that were measured."""

    layers: tuple[str, ...]
    case: KernelCase
    choice: Mapping[str, str]
    milliseconds: Mapping[str, Mapping[str, Amount]]


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """``kernels.json``: which implementations the sparse layers ran on a CPU."""

    mode: str
    variant: str | None
    rows: tuple[KernelRow, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its folder's files, read and checked."""

    folder: Path
    config: str
    summary: Summary
    rounds: tuple[RoundRow, ...]
    tasks: tuple[TaskRow, ...]
    kernels: Kernels | None = None
