"""What must hold between the cells of a study, found before any of them runs."""

from collections.abc import Mapping, Sequence

from mest_fed.config import to_flat
from mest_fed.errors import InputError
from mest_fed.simulation.study.axes import label_of
from mest_fed.simulation.study.grid import Cell
from mest_fed.simulation.study.protocols import Protocol
from mest_fed.simulation.study.rows import COLUMNS, metric_of
from mest_fed.simulation.study.study_file import StudyFile, protocol_of

Labels = Mapping[str, str]


def check_study(study: StudyFile, cells: Sequence[Cell]) -> None:
    """Refuse a study whose runs cannot be compared.

    Raises
    ------
    InputError
        If an axis is called as a column of the results, the reference is no cell, or runs that are
        compared differ in what the protocol has them share.
    """
    protocol = protocol_of(study.about, study.source)
    taken = {*COLUMNS, *protocol.columns()}
    if wrong := [axis.name for axis in study.axes if axis.name in taken]:
        raise InputError(
            f"axes.{wrong[0]} is called as a column of the results ({study.source}); "
            f'allowed: the whole key, such as "section.{wrong[0]}"'
        )
    metrics = {metric_of(cell.config): cell.id for cell in cells}
    if len(metrics) > 1:
        one, two = list(metrics.items())[:2]
        raise InputError(
            f"the cells are judged by different metrics ({study.source}): {one[1]} by "
            f"{one[0].name}, {two[1]} by {two[0].name}; allowed: one task in a study"
        )
    protocol.measures(next(iter(metrics)))  # its target is one of the metric
    own = {axis: label_of(value) for axis, value in study.about.reference.items()}
    for reference in (*protocol.references, *([own] if own else [])):
        _check_pairs(study, cells, reference, protocol)


def _check_pairs(
    study: StudyFile, cells: Sequence[Cell], reference: Labels, protocol: Protocol
) -> None:
    by_labels = {tuple(cell.labels.values()): cell for cell in cells}
    compared = 0
    for cell in cells:
        against = by_labels.get(tuple((cell.labels | dict(reference)).values()))
        if against is None or against is cell:
            continue
        compared += 1
        one, two = to_flat(cell.config), to_flat(against.config)
        for key, value in one.items():
            if key.startswith(protocol.shared) and value != two[key]:
                raise InputError(
                    f"{cell.id} has {key} = {value!r} and its reference {against.id} has "
                    f"{two[key]!r} ({study.source}); allowed with study.protocol = "
                    f"{study.about.protocol!r}: the same"
                )
    if not compared:
        named = ", ".join(f"{axis} = {label}" for axis, label in reference.items())
        raise InputError(f"no cell has a reference with {named} ({study.source})")
