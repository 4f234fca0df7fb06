"""Memory of a whole process that trains with the runtime alone, and how soon it has trained a step.

This process, with torch, writes the program of a training step as JSON and the weights as .npz;
another one, which must not have torch, reads them and trains (``runtime_trainer.py``). Bytes are
measured (/proc/self/smaps_rollup, Linux); those of arena and workspace are exact.

    python benchmarks/runtime_process.py --json runtime_process.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from command_line import Parser, positive, run, share, show
from harness import Row, software, write_json
from train_contestants import CLASSES, IMAGE, MODELS

from mest_fed.errors import InputError
from mest_fed.nn import build_model, sparsify
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.rng import torch_generator
from mest_fed.runtime.passes.groups import group_size
from mest_fed.training.step_program import STORAGE, StepPrograms
from mest_fed.training.tasks import Classification

STAGES = {
    "python": "the interpreter",
    "numpy": "NumPy",
    "runtime": "the runtime's modules",
    "program": "the program, read",
    "loaded": "arena, weights, batch",
    "trained": "the steps",
}
COLUMNS = {"after": "name", "resident": "rss", "share": "pss", "of no file": "anonymous"}


def write_step(options: argparse.Namespace, folder: Path) -> None:
    """Write the program, the weights and a batch into a folder."""
    generator = torch_generator(0, options.model)
    width = options.width or MODELS[options.model].width
    model = build_model(
        options.model, IMAGE, CLASSES, generator=generator, width=width, norm=options.norm
    )
    sparsify(model, options.scheme, options.density)
    settings = OptimizerSettings(momentum=0.9, weight_decay=1e-4)
    programs = StepPrograms(
        model.train(), (IMAGE, torch.float32), Classification(), settings, storage=options.storage
    )
    group = group_size(programs, options.batch)
    (folder / "step.json").write_text(programs(group).to_json())
    np.savez(folder / "weights.npz", **programs.captured(group).arrays())
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.batch, *IMAGE)).astype(np.float32)
    np.savez(folder / "batch.npz", inputs=images, targets=rng.integers(CLASSES, size=options.batch))


def trained(folder: Path, steps: int) -> dict[str, object]:
    """Train in a process of its own; return what it says."""
    trainer = Path(__file__).with_name("runtime_trainer.py")
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(trainer), str(folder), str(steps)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"the process that trains ended with {done.stderr.strip()[-300:]}")
    found: dict[str, object] = json.loads(done.stdout)
    if found["unwanted"]:
        raise InputError(f"the process that trains has {found['unwanted']}; allowed: none of them")
    return found


def measure(options: argparse.Namespace) -> tuple[list[Row], Row]:
    """Run the process several times; return medians by stage, and of the whole."""
    with tempfile.TemporaryDirectory() as name:
        write_step(options, Path(name))
        runs = [trained(Path(name), options.steps) for _ in range(options.repeats)]

    def median(stage: str, kind: str) -> int:
        return round(statistics.median(it["stages"][stage][kind] for it in runs))  # type: ignore[index]

    rows: list[Row] = [
        {"name": text, **{kind: median(stage, kind) for kind in ("rss", "pss", "anonymous")}}
        for stage, text in STAGES.items()
    ]
    whole: Row = {key: runs[0][key] for key in ("arena", "workspace", "arrays", "batch")}
    whole["first_step"] = statistics.median(it["first_step"] for it in runs)  # type: ignore[type-var]
    whole["step"] = statistics.median(min(it["seconds"]) for it in runs)  # type: ignore[call-overload]
    return rows, whole


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    quick = {"model": "cnn2", "batch": 8, "repeats": 1, "steps": 2}
    parser = Parser(__doc__.splitlines()[0], quick)
    parser.add_argument("--model", default="resnet32", choices=MODELS)
    parser.add_argument("--norm", default="group", choices=["group", "batch"])
    parser.add_argument("--scheme", default="block", help="a scheme of mest-fed")
    parser.add_argument("--density", type=share, default=0.1)
    parser.add_argument("--storage", choices=STORAGE, default="fp32", help="of planes")
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--width", type=share, help="a smaller model, to try the benchmark")
    parser.add_argument("--steps", type=positive, default=5, help="of each process")
    parser.add_argument("--repeats", type=positive, default=5, help="processes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    rows, whole = measure(options)
    mib = [
        {key: it if key == "name" else round(it / 2**20, 1) for key, it in row.items()}  # type: ignore[operator]
        for row in rows
    ]
    show("Resident MiB of one process, measured after each stage", mib, COLUMNS)
    exact = {key: f"{whole[key] / 2**20:.1f}" for key in ("arena", "workspace", "arrays", "batch")}  # type: ignore[operator]
    print("MiB that the step holds (exact):", exact)
    print(f"seconds to the end of the first step: {whole['first_step']:.3f} (measured)")
    if options.json:
        write_json(options.json, rows, whole=whole, software=software("numpy", "torch"))


if __name__ == "__main__":
    run(main)
