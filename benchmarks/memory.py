"""Peak memory of training: ours against dense torch, each in a process of its own, in turn.

What is measured is resident memory beyond what stands there before the model exists: after imports,
loaded images and a warm-up of the same training at a small scale, for either side. Dense torch
runs as it comes, and once more with the C library told, as it is for ours, to give freed memory
back (`peer_trimmed`): that needs less memory and more time.

- ``goals``: MEST's ResNet-32 and ResNet-18 against dense torch, by torch; and ResNet-32 with group
  norm, by torch and as a compiled program of one image a group, in 32 and 16 bits;
- ``options``: what each way to save memory does to ours by torch, alone and together;
- ``prediction``: the footprint model (modelled) beside a measurement, over models, schemes, norms,
  micro-batches and memory options. ``ratio`` is predicted / measured;
- ``programs``: the same of compiled steps, over models, schemes, norms, groups and optimizers.

    python benchmarks/memory.py --json memory.json --picture memory.svg
    python benchmarks/memory.py --parts goals --runs 1
    python benchmarks/memory.py --parts programs --json memory-programs.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from command_line import Parser, collect, positive, run, share, show
from harness import Row, software, write_json
from memory_case import Case
from memory_prediction import cases, prediction_rows

from mest_fed.catalogue import Engine
from mest_fed.memory import MemoryOptions
from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT

PREDICTIONS = {"prediction": Engine.TORCH, "programs": Engine.COMPILED}
PARTS = ["goals", "options", *PREDICTIONS]
LEAN = MemoryOptions("segments", "int8", release_gradients=True)
COLUMNS = {
    "part": "part",
    "name": "name",
    "ours, MB": "ours",
    "peer, MB": "peer",
    "ratio": "ratio",
    "trimmed": "ratio_trimmed",
    "ours, s": "ours_seconds",
    "peer, s": "peer_seconds",
}


def measured(case: Case, *, trimmed: bool) -> Mapping[str, Any]:
    """Run a case in a fresh process."""
    environment = os.environ | (ALLOCATOR_ENVIRONMENT if trimmed else {})
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("memory_process.py"))],
        input=json.dumps(case.table()),
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    facts: Mapping[str, Any] = json.loads(done.stdout)
    return facts


def goals(runs: int, width: float | None = None) -> Iterator[Row]:
    """Compare ours with dense torch; ``width``: of smaller models."""
    resnet18 = Case(model="resnet18", width=1.0, batch=32, micro_batch=32)
    lean = {base: replace(base, memory=LEAN) for base in (Case(), resnet18)}
    group = Case(norm="group")
    program = replace(group, engine=Engine.COMPILED.value, micro_batch=1)
    contests = {
        base: [replace(own, micro_batch=size) for size in sizes]
        for (base, own), sizes in zip(lean.items(), ((64, 16, 8), (32, 8)), strict=True)
    }
    contests[group] = [replace(group, memory=LEAN, micro_batch=size) for size in (8, 1)]
    contests[group] += [program, replace(program, storage="bf16")]
    for base, ours in contests.items():
        dense = replace(base, side="dense")
        contestants = {"dense": (dense, False), "trimmed": (dense, True)}
        contestants |= {_title(case): (case, True) for case in ours}
        found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in contestants}
        for _ in range(runs):
            for name, (case, trimmed) in contestants.items():
                chosen = replace(case, width=width or case.width)
                found[name].append(measured(chosen, trimmed=trimmed))
        for title in map(_title, ours):
            yield comparison_row("goals", title, found[title], found["dense"], found["trimmed"])


def _title(case: Case) -> str:
    how = f"micro-batch {case.micro_batch}"
    if case.is_compiled:
        how = f"compiled {case.storage}, groups of {case.micro_batch}"
    scheme = f"{case.scheme} {case.density:g}, {case.norm} norm"
    return f"{case.model}, batch {case.batch}, {how}, {scheme}"


def options(runs: int, width: float | None = None) -> Iterator[Row]:
    """Try each way to save memory on MEST's ResNet-32, beside ours without any."""
    plain = Case() if width is None else Case(width=width)
    tried = {
        "consume gradients": replace(plain, memory=MemoryOptions(release_gradients=True)),
        "recompute norms": replace(plain, memory=MemoryOptions("norms")),
        "recompute segments": replace(plain, memory=MemoryOptions("segments")),
        **{
            f"saved as {saved}": replace(plain, memory=MemoryOptions(saved=saved))
            for saved in ("mask", "fp16", "bf16", "int8")
        },
        **{
            f"segments, saved as {saved}": replace(plain, memory=MemoryOptions("segments", saved))
            for saved in ("mask", "fp16", "int8")
        },
        "micro-batch 8": replace(plain, micro_batch=8),
        "no momentum": replace(plain, momentum=False),
        "first 5 of 16 segments frozen": replace(plain, memory=MemoryOptions(frozen=5)),
        "segments, int8, consume, micro-batch 8": replace(plain, memory=LEAN, micro_batch=8),
        "dense weights, segments, int8, consume": replace(plain, scheme="dense", memory=LEAN),
    }
    reference = [measured(plain, trimmed=True) for _ in range(runs)]
    for title, case in tried.items():
        ours = [measured(case, trimmed=True) for _ in range(runs)]
        yield comparison_row("options", title, ours, reference)


def comparison_row(
    part: str,
    name: str,
    ours: Sequence[Mapping[str, Any]],
    peer: Sequence[Mapping[str, Any]],
    trimmed: Sequence[Mapping[str, Any]] | None = None,
) -> Row:
    """Compare runs of ours and of the peer; ``trimmed``: the peer with freed memory given back."""
    mine, other = _megabytes(ours), _megabytes(peer)
    row: Row = {
        "part": part,
        "name": name,
        "ours": _median(mine),
        "peer": _median(other),
        "unit": "MB beyond imports, data and warm-up; measured",
        "ratio": round(statistics.median(other) / statistics.median(mine), 2),
        "runs": len(ours),
        "ours_seconds": _step(ours),
        "peer_seconds": _step(peer),
        "ours_runs": mine,
        "peer_runs": other,
        "ours_peak_of_process": _median([run["peak"] / 1e6 for run in ours]),
        "peer_peak_of_process": _median([run["peak"] / 1e6 for run in peer]),
    }
    if trimmed is not None:
        tight = _megabytes(trimmed)
        row["peer_trimmed"], row["peer_trimmed_seconds"] = _median(tight), _step(trimmed)
        row["ratio_trimmed"] = round(statistics.median(tight) / statistics.median(mine), 2)
    return row


def _megabytes(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    return [round(run["added"] / 1e6, 2) for run in runs]


def _median(numbers: Sequence[float]) -> float:
    return round(statistics.median(numbers), 2)


def _step(runs: Sequence[Mapping[str, Any]]) -> float:
    """Return the median seconds of a step that was not the first."""
    return round(statistics.median(s for run in runs for s in run["seconds"][1:]), 3)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__.splitlines()[0], {"runs": 1, "parts": ["goals"], "width": 0.25})
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runs", type=positive, default=3, help="processes of each contestant")
    parser.add_argument(
        "--width", type=share, help="of smaller models for goals and options, to try the benchmark"
    )
    parser.add_argument("--picture", type=Path, help="draw predictions against measurements")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)

    def rows() -> Iterator[Row]:
        if "goals" in chosen.parts:
            yield from goals(chosen.runs, chosen.width)
        if "options" in chosen.parts:
            yield from options(chosen.runs, chosen.width)
        for part, engine in PREDICTIONS.items():
            if part in chosen.parts:
                yield from prediction_rows(part, cases(engine))

    done = collect(rows())
    show("Peak memory of training, measured", done, COLUMNS)
    if chosen.json:
        facts = {"width": chosen.width} if chosen.width else {}
        write_json(chosen.json, done, software=software("torch", "numpy"), **facts)
    predictions = [row for row in done if row["part"] in PREDICTIONS]
    if chosen.picture and predictions:
        from memory_picture import draw

        draw(predictions, chosen.picture)


if __name__ == "__main__":
    run(main)
