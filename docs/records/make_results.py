"""Writes docs/results.md from the records: what each asked, how it was run, its means, its reading.

python docs/records/make_results.py
"""

import json
from pathlib import Path

from mest_fed.simulation.study.analysis import Analysis
from mest_fed.simulation.study.record import ENVIRONMENT, README, read_record
from mest_fed.simulation.study.tables import in_short, means_table

RECORDS = Path(__file__).parent
RESULTS = RECORDS.parent / "results.md"
_READING = "## Reading"
_HEAD = """# Results

Each figure here is a row of a record, which `make study` computes anew: its folder holds the
study's file, every key of each run, the raw rows, the environment, all differences with their
intervals, and a reading. This page is written by `docs/records/make_results.py`. Memory is what a
round adds to a process; virtual time and energy are modelled. A ± is the sample standard deviation
over seeds; the best mean of those that are compared is bold, also where it is best by noise alone.

"""


def results() -> str:
    """Return the page."""
    places = sorted(place.parent for place in RECORDS.glob(f"*/{ENVIRONMENT}"))
    return _HEAD + "\n".join(map(_section, places))


def _section(place: Path) -> str:
    analysis = read_record(place)
    name = analysis.study.name
    reading = (place / README).read_text(encoding="utf-8").partition(_READING)[2]
    parts = [
        f"## {name}",
        _said(analysis),
        in_short(analysis),
        means_table(analysis).as_markdown(),
        reading.partition("\n## ")[0].strip(),
        f"{_how(place, analysis)} [Record](records/{place.name}/README.md).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _said(analysis: Analysis) -> str:
    """Return what a study's file says in its first lines."""
    lines = []
    for line in analysis.study.text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return "\n".join(lines)


def _how(place: Path, analysis: Analysis) -> str:
    """Return command, machine and date of a record."""
    facts = json.loads((place / ENVIRONMENT).read_text(encoding="utf-8"))
    machine = facts["machine"]
    seeds = f"{analysis.seeds} seed{'s' * (analysis.seeds != 1)} at most"
    return (
        f"`{facts['command']}`; {seeds}; {machine['cpu']}, {machine['cores']} cores; "
        f"{facts['written'][:10]}."
    )


if __name__ == "__main__":
    RESULTS.write_text(results(), encoding="utf-8")
