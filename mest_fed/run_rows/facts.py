"""What is known of a run before its first round: how it came about, and who has which labels."""

from collections.abc import Mapping
from dataclasses import dataclass

from mest_fed.run_rows.row import Count


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run was computed.

    ``cores`` are those that the process was allowed, ``machine_cores`` all that there are; memory
    is the machine's.
    """

    system: str
    architecture: str
    cpu: str
    cores: Count
    machine_cores: Count
    memory_bytes: Count


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that a run has otherwise than its preset, or the defaults; both as text."""

    key: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """``provenance.json``, written before the first round; runs of earlier versions lack it.

    ``started`` is an ISO 8601 time in UTC. ``base`` is the preset that ``changes`` are counted
    from; empty: the defaults.
    """

    command: str
    started: str
    machine: Machine
    versions: Mapping[str, str]
    base: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """``labels.json``: examples by class, a row for each of ``partitions``, of so many devices.

    Held-out examples are included. Runs of earlier versions, and tasks without classes, lack it.
    """

    classes: tuple[str, ...]
    devices: Count
    partitions: tuple[Count, ...]
    counts: tuple[tuple[Count, ...], ...]

    def __post_init__(self) -> None:
        """Check that it is a table."""
        if len(self.counts) != len(self.partitions):
            raise ValueError(f"{len(self.counts)} counts for {len(self.partitions)} partitions")
        if any(len(row) != len(self.classes) for row in self.counts):
            raise ValueError(f"a row of counts has not {len(self.classes)} classes")
