"""A process that trains with the runtime alone: NumPy, a program in JSON, weights in .npz.

    python benchmarks/runtime_trainer.py FOLDER STEPS

Prints, as JSON, what memory is resident after each stage, and the seconds from the first import to
the end of the first step. ``runtime_process.py`` makes the folder and starts it.
"""

import itertools
import sys
import time


def resident() -> dict[str, int]:
    """Return this process's resident bytes: all, its share of shared pages, and of no file."""
    found = {}
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            key, _, rest = line.partition(":")
            if key in ("Rss", "Pss", "Anonymous"):
                found[key.lower()] = int(rest.split()[0]) * 1024
    return found


def train(folder: str, steps: int) -> dict[str, object]:
    """Train; return what was measured."""
    stages, begin = {"python": resident()}, time.perf_counter()
    import numpy as np

    stages["numpy"] = resident()
    from pathlib import Path

    from mest_fed.runtime.reading import read_program
    from mest_fed.runtime.step import CompiledStep

    stages["runtime"] = resident()
    program = read_program(Path(folder) / "step.json")
    stages["program"] = resident()
    step = CompiledStep(program)
    with np.load(Path(folder) / "weights.npz") as weights:
        for name in weights:
            step.load(name, weights[name])
    with np.load(Path(folder) / "batch.npz") as batch:
        inputs, targets = batch["inputs"], batch["targets"]
    stages["loaded"] = resident()
    losses, ends = [], [time.perf_counter()]
    for _ in range(steps):
        losses.append(step.step(inputs, targets, 0.01))
        ends.append(time.perf_counter())
    stages["trained"] = resident()
    return {
        "stages": stages,
        "first_step": ends[1] - begin,
        "seconds": [end - start for start, end in itertools.pairwise(ends)],
        "losses": losses,
        "arena": step.arena_bytes,
        "workspace": step.runtime.workspace_bytes,
        "arrays": sum(it.nbytes for it in step.arrays.values()),
        "batch": inputs.nbytes + targets.nbytes,
        "unwanted": sorted({"torch", "pydantic", "flwr"} & set(sys.modules)),
    }


if __name__ == "__main__":
    found = train(sys.argv[1], int(sys.argv[2]))
    import json

    print(json.dumps(found))
