"""The summary of a run that has ended, with its tiers of devices and the layers of its model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mest_fed.run_rows.rounds import Spread
from mest_fed.run_rows.row import Amount, Count, Share
from mest_fed.schema import ACCURACY, FailureKind, Metric, TaskStatus, in_words
from mest_fed.units import number_of


@dataclass(frozen=True, kw_only=True)
class Watts:
    """What a whole device draws while it computes, and while it sends or receives."""

    compute: Amount
    radio: Amount


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The devices of one profile and budget, which train under one plan.

    Real devices of whose profile the server knows nothing are of one kind, without a name or watts.
    ``recompute`` and ``saved`` are how training saves memory, as in
    :class:`mest_fed.memory.MemoryOptions`; ``shortfall_bytes`` is 0 unless the plan was made anew,
    as in :class:`mest_fed.memory.Plan`.
    """

    profile: str
    title: str
    clients: Count
    budget_bytes: Count
    predicted_peak_bytes: Count
    measured_peak_bytes: Count | None = None
    shortfall_bytes: Count = 0
    density: Share
    micro_batch: Count
    recompute: str | None = None
    saved: str | None = None
    parts: Mapping[str, Count]
    plan: str
    watts: Watts | None = None

    @property
    def peak_bytes(self) -> int:
        """The measured peak where there is one, the predicted one otherwise."""
        return self.measured_peak_bytes or self.predicted_peak_bytes


@dataclass(frozen=True, kw_only=True)
class RealDevice:
    """One device of a deployed run, as it was when it last registered; its peak is the largest.

    ``examples`` are those to train on. ``measured_peak_bytes`` is as in its reports, None where it
    reported none.
    """

    partition: Count
    name: str
    device: str
    examples: Count
    budget_bytes: Count
    density: Share
    micro_batch: Count
    predicted_peak_bytes: Count
    measured_peak_bytes: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the final global model; a dense one has density 1, and the reason for it."""

    name: str
    weights: Count
    density: Share
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """``summary.json``, written when a run has ended.

    ``tasks`` and ``failures`` count the tasks of the whole run by how, and why, they ended; a kind
    of failure that did not occur is left out. ``devices_asked`` is how many of ``devices`` had a
    task. ``deployed`` says that they were real: both clocks are then real, too, and ``nodes`` has
    each of them by partition, which runs of earlier versions lack. ``energy_joules``
    leaves out the ``without_power`` devices of whose power the server knows nothing; it is None
    where that are all. ``kept`` is the rule by which the model was kept.
    ``why_torch`` says why torch trained, at least on some devices, though programs were asked for;
    runs of earlier versions, and those whose programs trained, lack it.
    ``diverged_round`` is the first round since which the loss of the model, up to the one that was
    kept, was not finite.
    """

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
    task: str = "classification"
    primary_metric: Metric = ACCURACY
    final_metrics: Mapping[str, float] = field(default_factory=dict)
    final_accuracy: Share | None
    best_round: Count | None = None
    kept: str = "last"
    kept_round: Count | None = None
    stopped: str | None = None
    diverged_round: Count | None = None
    #: How far the run has come, where it has not ended; in no file, but in reports.
    unfinished: str | None = None
    final_client_accuracy: Spread | None
    bytes_up: Count
    bytes_down: Count
    virtual_seconds: Amount
    wall_seconds: Amount
    clients_trained: Count
    clients_failed: Count
    clients_rejected: Count
    energy_joules: Amount | None
    without_power: Count = 0
    over_budget: Count
    out_of_memory: Count | None = None
    tasks: Mapping[TaskStatus, Count] = field(default_factory=dict)
    failures: Mapping[FailureKind, Count] = field(default_factory=dict)
    devices: Count | None = None
    devices_asked: Count | None = None
    deployed: bool = False
    why_torch: str | None = None
    tiers: tuple[Tier, ...]
    nodes: tuple[RealDevice, ...] = ()
    layers: tuple[Layer, ...]
    dense_bytes: Count
    model_sha256: str
    versions: Mapping[str, str]

    @property
    def final_value(self) -> float | None:
        """The primary metric of the final model on the central test set, or None."""
        metric = self.primary_metric
        return self.final_accuracy if metric == ACCURACY else self.final_metrics.get(metric.name)

    @property
    def warning(self) -> str | None:
        """What a person must know first, in one line: that the run came to nothing, and why."""
        metric, rate = self.primary_metric, "a lower training.learning_rate may help"
        if not self.clients_trained:
            lost = in_words(self.tasks) or "no device was asked"
            text = (
                "nothing was trained: the server accepted no update in "
                f"{number_of(self.rounds, 'round')} ({lost}); "
                f"the {metric.name} is that of the first weights"
            )
            diverged = self.failures.get(FailureKind.NOT_FINITE)
            return text + (f"; the loss of {diverged} was not finite: {rate}" if diverged else "")
        if self.diverged_round is not None:
            return (
                "the run diverged: the loss of the model that it leaves is not finite, from round "
                f"{self.diverged_round} on; {rate}"
            )
        return None
