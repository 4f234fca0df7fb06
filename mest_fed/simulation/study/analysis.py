"""What a study's rows come to: means over seeds, and paired differences against a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mest_fed.schema import Metric
from mest_fed.simulation.report.compare import Column
from mest_fed.simulation.study.axes import label_of
from mest_fed.simulation.study.protocols import Protocol
from mest_fed.simulation.study.rows import DONE
from mest_fed.simulation.study.statistics import Difference, Spread
from mest_fed.simulation.study.study_file import StudyFile, protocol_of

Row = Mapping[str, Any]
Labels = tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Cells that differ in the seed alone.

    Parameters
    ----------
    labels : mapping of str to str
        Axis -> what its value is called, without the seed's.
    rows : tuple of mapping
        One for each seed.
    """

    labels: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def done(self) -> list[Row]:
        """The rows of runs that have ended."""
        return [row for row in self.rows if row["status"] == DONE]

    def spread(self, key: str) -> Spread | None:
        """Return the mean and spread of a column over the seeds that have it."""
        return Spread.of([row[key] for row in self.done if row.get(key) is not None])


@dataclass(frozen=True)
class Paired:
    """A group against its reference.

    Parameters
    ----------
    group, against : Group
        Which.
    differences : mapping of str to Difference or None
        By column; each pair is of one seed.
    """

    group: Group
    against: Group
    differences: Mapping[str, Difference | None]


@dataclass(frozen=True)
class Pairing:
    """All groups against those that have the reference's values and else the same.

    Parameters
    ----------
    reference : mapping of str to str
        Axis -> value.
    pairs : tuple of Paired
        In the order of the groups.
    """

    reference: Mapping[str, str]
    pairs: tuple[Paired, ...]

    @property
    def name(self) -> str:
        """What they are compared with; a number says nothing without its axis."""
        return ", ".join(
            value if value[:1].isalpha() else f"{axis} = {value}"
            for axis, value in self.reference.items()
        )


@dataclass(frozen=True)
class Analysis:
    """A study's rows, and what they come to.

    Parameters
    ----------
    study : StudyFile
        Which.
    rows : sequence of mapping
        One a cell, as :func:`mest_fed.simulation.study.rows.result_rows` makes them.
    """

    study: StudyFile
    rows: Sequence[Row]

    @cached_property
    def protocol(self) -> Protocol:
        """What is measured."""
        return protocol_of(self.study.about, self.study.source)

    @property
    def metric(self) -> Metric:
        """The primary metric, which is the same in all cells."""
        row = self.rows[0]
        return Metric(row["metric"], row["higher_is_better"], row["share"])

    @cached_property
    def columns(self) -> list[Column]:
        """The columns of the table of means."""
        return self.protocol.measures(self.metric)

    @cached_property
    def judged(self) -> list[Column]:
        """The columns whose paired differences are given."""
        by_key = {column.key: column for column in self.columns}
        return [by_key[key] for key in self.protocol.judged]

    @cached_property
    def groups(self) -> list[Group]:
        """The cells by all but the seed, in their order."""
        names = [axis.name for axis in self.study.others]
        found: dict[Labels, list[Row]] = {}
        for row in self.rows:
            found.setdefault(tuple(label_of(row[name]) for name in names), []).append(row)
        return [
            Group(dict(zip(names, labels, strict=True)), tuple(rows))
            for labels, rows in found.items()
        ]

    @property
    def seeds(self) -> int:
        """Runs that the largest group has."""
        return max(len(group.rows) for group in self.groups)

    @cached_property
    def pairings(self) -> list[Pairing]:
        """The comparisons: with the protocol's own references, then the study's."""
        own = {axis: label_of(value) for axis, value in self.study.about.reference.items()}
        references = [*self.protocol.references, *([own] if own else [])]
        return [self._pairing(reference) for reference in references]

    def _pairing(self, reference: Mapping[str, str]) -> Pairing:
        by_labels = {tuple(group.labels.values()): group for group in self.groups}
        pairs = []
        for group in self.groups:
            wanted = tuple({**group.labels, **reference}.values())
            against = by_labels.get(wanted)
            if against is not None and against is not group:
                pairs.append(self._pair(group, against))
        return Pairing(reference, tuple(pairs))

    def _pair(self, group: Group, against: Group) -> Paired:
        seed = self.study.seed_axis
        partners = {row[seed.name] if seed else None: row for row in against.done}
        both = [
            (row, partners[key])
            for row in group.done
            if (key := row[seed.name] if seed else None) in partners
        ]
        differences = {}
        for column in self.judged:
            values = [(one.get(column.key), two.get(column.key)) for one, two in both]
            known = [one - two for one, two in values if one is not None and two is not None]
            differences[column.key] = Difference.of(known)
        return Paired(group, against, differences)

    @property
    def not_done(self) -> list[Row]:
        """The rows of cells whose run has not ended, or came to nothing."""
        return [row for row in self.rows if row["status"] != DONE or row["reason"]]
