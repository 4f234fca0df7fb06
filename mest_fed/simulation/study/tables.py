"""A study's tables in words: means with spreads, paired differences, what failed."""

from collections.abc import Sequence
from dataclasses import dataclass

from mest_fed.schema import Metric
from mest_fed.simulation.report.compare import NOTHING, Column
from mest_fed.simulation.study.analysis import Analysis, Group, Paired, Pairing
from mest_fed.simulation.study.rows import DONE, NOT_RUN
from mest_fed.simulation.study.statistics import CONFIDENCE, Difference, Spread
from mest_fed.units import number_of

#: Groups that a sentence names; of more it gives the number.
_MOST_NAMED = 8
_METRIC_COLUMNS = ("final", "best")
#: Of a difference: what the page calls it, and its class there.
UNKNOWN, WITHIN, BETTER, WORSE, BEYOND = "unknown", "within", "better", "worse", "beyond"
_SAID = {
    UNKNOWN: "one pair",
    WITHIN: "within noise",
    BETTER: "beyond noise: better",
    WORSE: "beyond noise: worse",
    BEYOND: "beyond noise",
}


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Parameters
    ----------
    text : str
        What stands in it.
    more : sequence of str
        Lines beneath, smaller.
    kind : str
        How it is marked; empty: not at all.
    """

    text: str
    more: Sequence[str] = ()
    kind: str = ""


@dataclass(frozen=True)
class TextTable:
    """A table that is ready to be read.

    Parameters
    ----------
    caption : str
        What it says.
    headings : sequence of (str, str)
        Names of the columns and ``measured``, ``modelled`` or nothing.
    rows : sequence of sequence of TableCell
        The first names the row.
    """

    caption: str
    headings: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[TableCell]]

    def as_markdown(self) -> str:
        """Return it as a table of Markdown, the marked cells in bold."""
        names = [f"{name} ({basis})" if basis else name for name, basis in self.headings]
        lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        for row in self.rows:
            lines.append(f"| {' | '.join(map(_markdown, row))} |")
        return "\n".join(lines)


def _markdown(cell: TableCell) -> str:
    text = " ".join((cell.text, *cell.more)).replace("|", r"\|")
    return f"**{text}**" if cell.kind in ("best", BETTER, WORSE, BEYOND) else text


def heading_of(analysis: Analysis) -> str:
    """Return what the first column is of: the axes, without the seed's."""
    return " · ".join(axis.name for axis in analysis.study.others) or "study"


def name_of(group: Group) -> str:
    """Return what a group is called."""
    return " · ".join(group.labels.values()) or "all"


def means_table(analysis: Analysis) -> TextTable:
    """Return the means over seeds, the best of those that are compared marked."""
    columns = analysis.columns
    best = {column.key: _best(analysis, column) for column in columns}
    rows = []
    for group in analysis.groups:
        cells = [TableCell(name_of(group)), TableCell(_seeds(group))]
        for column in columns:
            spread = group.spread(column.key)
            kind = "best" if name_of(group) in best[column.key] else ""
            cells.append(_mean(spread, column, analysis.metric, kind, len(group.done)))
        rows.append(cells)
    headings = [(heading_of(analysis), ""), ("seeds", "")]
    headings += [(column.heading, column.basis) for column in columns]
    caption = (
        "Means over seeds, with the sample standard deviation; the best of those that are "
        "compared in bold"
    )
    return TextTable(caption, headings, rows)


def _seeds(group: Group) -> str:
    done = len(group.done)
    return str(done) if done == len(group.rows) else f"{done} of {len(group.rows)}"


def _mean(
    spread: Spread | None, column: Column, metric: Metric, kind: str, seeds: int
) -> TableCell:
    if column.key == "reached":
        reached = 0 if spread is None else round(spread.mean * spread.count)
        return TableCell(f"{reached} of {seeds}", kind=kind)
    if spread is None:
        never = column.key.startswith("goal_") and seeds
        return TableCell("never" if never else NOTHING)
    more = []
    if spread.deviation is not None and (deviation := _deviation(spread, column, metric)):
        more.append(f"± {deviation}")
    if spread.count < seeds:
        more.append(f"of {spread.count} that reached it")
    return TableCell(column.write(spread.mean), more, kind)


def _deviation(spread: Spread, column: Column, metric: Metric) -> str:
    """Write a deviation; empty where all are the same as far as they are written."""
    assert spread.deviation is not None
    if column.key in _METRIC_COLUMNS and metric.share:
        return f"{100 * spread.deviation:.2g}"
    below, above = spread.mean - spread.deviation, spread.mean + spread.deviation
    if column.write(max(0.0, below)) == column.write(above):
        return ""
    return column.write(spread.deviation)


def _best(analysis: Analysis, column: Column) -> set[str]:
    """Return the names of the groups that are best among those that are compared."""
    if not column.better:
        return set()
    compared: dict[tuple[str, ...], dict[str, float]] = {}
    ours, conditions = set(analysis.study.about.reference), analysis.protocol.conditions
    for group in analysis.groups:
        spread = group.spread(column.key)
        partly = column.key.startswith("goal_") and _partly(group)
        if spread is None or partly:
            continue
        context = tuple(
            label
            for axis, label in group.labels.items()
            if axis in conditions or (ours and axis not in ours)
        )
        compared.setdefault(context, {})[name_of(group)] = spread.mean
    found = set()
    for means in compared.values():
        top = max(means.values(), key=lambda mean: column.better * mean)
        tied = {name for name, mean in means.items() if column.write(mean) == column.write(top)}
        if len(tied) < len(means):
            found |= tied
    return found


def _partly(group: Group) -> bool:
    """Whether some of a group's runs did not reach the target: its mean is of the faster ones."""
    return any(not row["reached"] for row in group.done)


def differences_table(analysis: Analysis, pairing: Pairing) -> TextTable:
    """Return the paired differences against a reference, and which are beyond noise."""
    rows = [_difference_row(analysis, paired) for paired in pairing.pairs]
    headings = [(heading_of(analysis), ""), ("pairs", "")]
    headings += [(column.heading, column.basis) for column in analysis.judged]
    caption = (
        f"Mean of the differences to {pairing.name} with the same seed and the same everything "
        f"else, with the {CONFIDENCE:.0%} interval of a paired t-test"
    )
    return TextTable(caption, headings, rows)


def _difference_row(analysis: Analysis, paired: Paired) -> list[TableCell]:
    counts = [each.count for each in paired.differences.values() if each is not None]
    cells = [TableCell(name_of(paired.group)), TableCell(str(max(counts, default=0)))]
    for column in analysis.judged:
        cells.append(_difference(paired.differences[column.key], column, analysis.metric))
    return cells


def _difference(found: Difference | None, column: Column, metric: Metric) -> TableCell:
    if found is None:
        never = column.key.startswith("goal_")
        return TableCell(NOTHING, ["no pair reached it"] if never else ())
    kind = verdict(found, column)
    text = signed(found.mean, column, metric)
    if found.interval is None:
        return TableCell(text, [_SAID[UNKNOWN]], UNKNOWN)
    low, high = (signed(each, column, metric, unit=False) for each in found.interval)
    interval = ["[the same in each pair]"] if low == high else [f"[{low}, {high}]"]
    return TableCell(text, [*interval, _SAID[kind]], kind)


def verdict(found: Difference, column: Column) -> str:
    """Return which of the words of this module a difference is."""
    if found.beyond_noise is None:
        return UNKNOWN
    if not found.beyond_noise:
        return WITHIN
    if not column.better:
        return BEYOND
    return BETTER if found.mean * column.better > 0 else WORSE


def signed(number: float, column: Column, metric: Metric, *, unit: bool = True) -> str:
    """Write a difference with its sign; of shares in percentage points."""
    if column.key in _METRIC_COLUMNS and metric.share:
        number = round(100 * number, 2)
        text = f"{abs(number):.2f}{' points' if unit else ''}"
    else:
        text = column.write(abs(number))
    sign = "+" if number > 0 else "\N{MINUS SIGN}" if number < 0 else ""
    return f"{sign}{text}"


def failures_table(analysis: Analysis) -> TextTable | None:
    """Return the cells that were begun and are not done, and why; None if there are none.

    Those that were never begun are counted.
    """
    begun = [row for row in analysis.not_done if row["status"] != NOT_RUN]
    rows = [
        [TableCell(row["cell"]), TableCell(row["status"]), TableCell(row["reason"] or NOTHING)]
        for row in begun
    ]
    if not rows:
        return None
    caption, others = "Their runs take no part in means", len(analysis.not_done) - len(begun)
    if others:
        caption += (
            f"; {number_of(others, 'more cell')} {'was' if others == 1 else 'were'} not begun"
        )
    return TextTable(caption, [("cell", ""), ("status", ""), ("why", "")], rows)


def in_short(analysis: Analysis) -> str:
    """Say in a few sentences what was found."""
    done = sum(row["status"] == DONE for row in analysis.rows)
    text = f"{done} of {len(analysis.rows)} cells are done. "
    if analysis.seeds < 2:
        text += "With one seed nothing can be said of noise. "
    for pairing in analysis.pairings:
        text += _found(analysis, pairing)
    return text.strip()


def _found(analysis: Analysis, pairing: Pairing) -> str:
    column = analysis.judged[0]
    said: dict[str, list[str]] = {}
    for paired in pairing.pairs:
        difference = paired.differences[column.key]
        if difference is not None:
            said.setdefault(verdict(difference, column), []).append(name_of(paired.group))
    if not said or set(said) == {UNKNOWN}:
        return ""
    few = sum(map(len, said.values())) <= _MOST_NAMED
    parts = [
        f"{', '.join(said[kind]) if few else len(said[kind])} "
        f"{'is' if len(said[kind]) == 1 else 'are'} {words}"
        for kind, words in (
            (BETTER, "better beyond noise"),
            (WORSE, "worse beyond noise"),
            (WITHIN, "within noise"),
        )
        if kind in said
    ]
    return f"In {column.heading}, against {pairing.name}: {'; '.join(parts)}. "
