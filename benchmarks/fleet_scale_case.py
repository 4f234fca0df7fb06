"""One case of fleet_scale.py: a run in a process of its own, its rounds and its memory."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import Timing
from process_tree import RAY, Sample, TreeMeter

from mest_fed.errors import MestFedError

PROCESS = Path(__file__).with_name("fleet_scale_process.py")


@dataclass(frozen=True)
class Case:
    """One run."""

    population: int
    cohort: int
    rounds: int
    workers: int

    @property
    def name(self) -> str:
        """Name of the row."""
        return f"{self.population:,} devices, cohort {self.cohort:,}"


@dataclass
class Course:
    """What was seen of a run: its rounds' lines, memory, and load of the machine at its start."""

    rounds: list[dict[str, Any]]
    samples: list[Sample]
    load: float

    @property
    def seconds(self) -> Timing:
        """Seconds of each round from the second on."""
        ends = [row["at"] for row in self.rounds[1:]]
        return Timing(tuple(after - before for before, after in itertools.pairwise(ends)))

    @property
    def cpu_seconds(self) -> float:
        """Processor time of driver and workers in a round from the second on, on average."""
        start, end = self.rounds[1]["at"], self.rounds[-1]["at"]
        seen = [sample for sample in self.samples if start <= sample.at <= end]
        share = (seen[-1].at - seen[0].at) / (end - start) if len(seen) > 1 else 0.0
        # What was not sampled at either end took as much as the rest.
        return (seen[-1].cpu - seen[0].cpu) / share / len(self.seconds.runs) if share else 0.0

    def fullest(self) -> dict[int, Sample]:
        """Return the sample of most memory of each round that was long enough to have one."""
        found = {}
        for before, row in itertools.pairwise(self.rounds):
            of_round = [s for s in self.samples if before["at"] <= s.at < row["at"]]
            if of_round:
                found[int(row["round"])] = max(of_round, key=lambda sample: sample.ours)
        return found

    def peak(self, first: int, last: int, *, with_ray: bool = False) -> int:
        """Return the most bytes during these rounds; in GB divide by 1e9."""
        start, end = self.rounds[first - 1]["at"], self.rounds[last]["at"]
        sizes = [
            sample.ours + (sample.sizes.get(RAY, 0) if with_ray else 0)
            for sample in self.samples
            if start <= sample.at <= end
        ]
        return max(sizes, default=0)


def run_case(case: Case) -> Course:
    """Run a case in a process of its own."""
    load = round(os.getloadavg()[0], 2)
    process = subprocess.Popen(
        [sys.executable, str(PROCESS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process, TreeMeter(process.pid) as meter:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(case)))
        process.stdin.close()
        rounds = [json.loads(line) for line in process.stdout if line.startswith('{"at"')]
    if process.returncode != 0 or len(rounds) != case.rounds + 1:
        raise MestFedError(f"{case.name}: the run ended with status {process.returncode}")
    return Course(rounds, meter.samples, load)
