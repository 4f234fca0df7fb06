"""Files of one message to train, for edge_process.py: what a node has and gets, all of it ready.

    python benchmarks/edge_prepare.py FOLDER

It is the quickstart's network for one device, whose examples are one batch: its round is one step.
"""

import json
import sys
from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict

from mest_fed.client.capability import capability_of
from mest_fed.config import from_table, to_flat
from mest_fed.data.minibatches import Examples
from mest_fed.link.description import RunDescription
from mest_fed.link.messages import ProgramRequest
from mest_fed.link.node.programs import NodePrograms
from mest_fed.link.node.worker import NodeState, NodeWorker
from mest_fed.link.server.lean_run import describe_run, order_of
from mest_fed.link.server.task_programs import make_programs
from mest_fed.nn import read_state
from mest_fed.process_tasks import PROCESS_TASKS
from mest_fed.wire import encode
from mest_fed.wire.npy import to_objects

BATCH = 16
#: Files that the two sides read.
DESCRIPTION, ORDER, CONFIG, OWN, OBJECTS, PROGRAMS = (
    "description.json",
    "order.json",
    "config.json",
    "own.npz",
    "objects",
    "programs",
)


def table(data: Path) -> dict[str, dict[str, object]]:
    """Return the quickstart's network on a file of images, one batch for the one device."""
    return {
        "run": {"rounds": 10},
        "data": {"name": "npz", "path": str(data), "hold_out": 0.0},
        "model": {"name": "resnet8", "width": 2.0, "norm": "group"},
        "sparsity": {"method": "mest-ems", "scheme": "block", "density": 0.1},
        "training": {
            "local_epochs": 1,
            "batch_size": BATCH,
            "learning_rate": 0.1,
            "device": "cpu",
        },
        "fleet": {"devices": 1, "mix": "rpi-4:1"},
    }


def write_data(path: Path) -> None:
    """Write images drawn at random: one batch to train with, another to test."""
    draw = np.random.default_rng(0)
    parts = {
        f"x_{part}": draw.integers(0, 256, (BATCH, 1, 8, 8), dtype=np.uint8)
        for part in ("train", "test")
    }
    labels = np.arange(BATCH, dtype=np.int64) % 10
    np.savez(path, **parts, y_train=labels, y_test=labels)


def main() -> None:
    """Write the files."""
    folder = Path(sys.argv[1])
    data = folder / "run.npz"
    write_data(data)
    config = from_table(table(data), "benchmarks/edge_prepare.py")
    flat = to_flat(config)
    task = PROCESS_TASKS.get(flat)
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), flat)
    plan = capability_of(task, context).plan
    run = describe_run(task, plan, 0)
    rows = task.partitions[0]
    examples = task.data.train.examples
    own = Examples(examples.inputs[rows], examples.targets[rows])
    payload, _ = encode(read_state(task.build_model()), task.spec, known=None)
    objects, order = to_objects(payload), order_of(task, plan, 1, mutate=False)
    (folder / DESCRIPTION).write_text(run.as_json(), encoding="utf-8")
    (folder / ORDER).write_text(json.dumps(order), encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(flat), encoding="utf-8")
    np.savez(folder / OWN, inputs=own.inputs, targets=own.targets)
    for name, parts in ((OBJECTS, objects), (PROGRAMS, {})):
        (folder / name).mkdir()
        for part, content in parts.items():
            (folder / name / part).write_bytes(content)

    def made(wanted: ProgramRequest) -> dict[str, bytes]:
        programs = make_programs(task, plan, wanted)
        for part, content in programs.items():
            (folder / PROGRAMS / part).write_bytes(content)
        return programs

    described = RunDescription.read(run.as_json())
    NodeWorker(described, own, NodePrograms(made), NodeState()).train(objects, 1, order)


if __name__ == "__main__":
    main()
