"""A million devices: memory of a run, and seconds a round against cohort and population.

A fleet trains a small CNN on digits; each device draws its 40 examples when it is asked. Each case
is a run in a process of its own, from configuration to summary, through ``open_run``. Seconds are
from the end of a round to the end of the next, evaluation on the test set and log included; the
first round, in which workers warm up, is not among them. Memory is the proportional set size of
driver and workers together, sampled four times a second from the first round on; Ray's own
processes are told apart. Processor time is that of driver and workers. All figures are measured.

    python benchmarks/fleet_scale.py --json scale.json --picture scale.svg
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from command_line import Parser, collect, positive, run, show
from fleet_scale_case import Case, Course, run_case
from harness import Row, software, write_json
from process_tree import DRIVER, WORKERS

MILLION, FEW_DEVICES = 1_000_000, 1_000
#: Rounds at the beginning and at the end whose memory is compared.
ENDS = 5
COLUMNS = {
    "case": "name",
    "s a round": "ours",
    "expected": "peer",
    "times": "ratio",
    "ms a device": "device_ms",
    "CPU ms a device": "cpu_device_ms",
    "peak GB": "peak_gb",
    "with Ray GB": "peak_with_ray_gb",
}


def row_of(case: Case, course: Course, expected: float | None) -> Row:
    """Return the row of a case; ``expected`` are the seconds that another case lets expect."""
    seconds, last = course.seconds, case.rounds
    peer = seconds.median if expected is None else expected
    ends = min(ENDS, last // 2)
    begin, end = course.peak(1, ends), course.peak(last - ends + 1, last)
    return {
        "name": case.name,
        "population": case.population,
        "cohort": case.cohort,
        "ours": round(seconds.median, 4),
        "peer": round(peer, 4),
        "unit": "s a round",
        "ratio": round(peer / seconds.median, 3),
        "runs": len(seconds.runs),
        "ours_quartiles": [round(value, 4) for value in seconds.quartiles],
        "ours_runs": [round(value, 4) for value in seconds.runs],
        "device_ms": round(seconds.median / case.cohort * 1e3, 3),
        "cpu_device_ms": round(course.cpu_seconds / case.cohort * 1e3, 3),
        "trained": round(statistics.mean(row["trained"] for row in course.rounds[1:]), 1),
        "accuracy": round(course.rounds[-1]["accuracy"], 4),
        "peak_gb": _gb(course.peak(1, last)),
        "peak_with_ray_gb": _gb(course.peak(1, last, with_ray=True)),
        "peak_first_rounds_gb": _gb(begin),
        "peak_last_rounds_gb": _gb(end),
        "peak_ever_gb": _gb(max((sample.ours for sample in course.samples), default=0)),
        "memory_by_round_gb": {
            str(number): {kind: _gb(sample.sizes.get(kind, 0)) for kind in (DRIVER, WORKERS)}
            for number, sample in course.fullest().items()
        },
        "load": course.load,
    }


def _gb(size: int) -> float:
    return round(size / 1e9, 3)


def rows(cases: Sequence[Case]) -> Iterator[Row]:
    """Run the cases; yield a row for each.

    Against cohort: what the largest one lets expect in proportion. Against population: the same
    cohort among a million.
    """
    found: dict[tuple[int, int], float] = {}
    largest = max(case.cohort for case in cases)
    for case in cases:
        expected = found.get((MILLION, case.cohort))
        if expected is None and (MILLION, largest) in found:
            expected = found[MILLION, largest] * case.cohort / largest
        row = row_of(case, run_case(case), expected)
        found[case.population, case.cohort] = row["ours"]
        yield row


def cases_of(options: Mapping[str, Any]) -> list[Case]:
    """Return the cases: the largest first, then smaller cohorts, then few devices."""
    most, rounds, workers = options["cohort"], options["rounds"], options["workers"]
    fewer = max(4, rounds // 2)
    smaller = [most // 10, most // 100]
    cases = [Case(MILLION, most, rounds, workers)]
    cases += [Case(MILLION, cohort, fewer, workers) for cohort in smaller if cohort >= 1]
    return [*cases, Case(FEW_DEVICES, max(1, most // 10), fewer, workers)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__.splitlines()[0], {"cohort": 20, "rounds": 4})
    parser.add_argument("--cohort", type=positive, default=1000, help="the largest one")
    parser.add_argument("--rounds", type=positive, default=20, help="of the largest cohort")
    parser.add_argument("--workers", type=positive, default=2, help="worker processes")
    parser.add_argument("--picture", type=Path, help="file to draw to")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    done = collect(rows(cases_of(vars(options))))
    show("A million devices (measured)", done, COLUMNS)
    if options.json:
        packages = software("torch", "numpy", "flwr", "ray")
        write_json(options.json, done, software=packages, workers=options.workers)
    if options.picture:
        from fleet_scale_picture import draw

        draw(done, options.picture)


if __name__ == "__main__":
    run(main)
