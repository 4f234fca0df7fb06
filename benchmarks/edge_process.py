"""One message to train in a fresh process, of a lean node or of a client with torch.

    python benchmarks/edge_process.py {lean,stock} FOLDER

The folder is of edge_prepare.py. Prints a line of JSON: ``marks``, what was done by when in seconds
of ``time.monotonic``, the same clock in all processes; ``update``, the SHA-256 of what was made.
"""

import json
import sys
import time
from hashlib import sha256
from pathlib import Path

#: What has ended at each mark: the process runs; imports; files are read; a step is done.
STARTED, IMPORTED, READ, TRAINED = "started", "imported", "read", "trained"
Marks = dict[str, float]


def lean(folder: Path) -> tuple[Marks, dict[str, bytes]]:
    """Train as ``mest-fed node`` does; all that a node imports is imported."""
    marks = {STARTED: time.monotonic()}
    import mest_fed.link.node.__main__  # noqa: F401  - what the command becomes
    import mest_fed.link.node.command  # noqa: F401  - with gRPC, though nothing is sent
    from mest_fed.link.description import RunDescription
    from mest_fed.link.node.data import read_examples
    from mest_fed.link.node.programs import NodePrograms
    from mest_fed.link.node.worker import NodeState, NodeWorker

    marks[IMPORTED] = time.monotonic()
    run = RunDescription.read((folder / "description.json").read_text(encoding="utf-8"))
    own = read_examples(str(folder / "own.npz"), run.inputs)
    order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
    objects = _files(folder / "objects")
    programs = NodePrograms(lambda _: _files(folder / "programs"))
    worker = NodeWorker(run, own, programs, NodeState())
    marks[READ] = time.monotonic()
    made, metrics = worker.train(objects, 1, order)
    marks[TRAINED] = time.monotonic()
    _check_one_batch(int(metrics["presented"]), len(own.targets))
    return marks, {name: bytes(data) for name, data in made.items()}


def stock(folder: Path) -> tuple[Marks, dict[str, bytes]]:
    """Train as the ClientApp does in the process that Flower's node starts for it."""
    marks = {STARTED: time.monotonic()}
    import torch  # noqa: F401
    from flwr.app import ConfigRecord, Context, Message, RecordDict

    import mest_fed.client.handlers  # noqa: F401
    from mest_fed.client.app import app
    from mest_fed.server.flower_internals import claim_identity
    from mest_fed.wire.npy import from_objects, to_objects
    from mest_fed.wire.records import from_record, to_record

    marks[IMPORTED] = time.monotonic()
    claim_identity(run_id=1)  # a message is of a run
    flat = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    order = json.loads((folder / "order.json").read_text(encoding="utf-8"))
    content = to_record(from_objects(_files(folder / "objects")))
    content["mest"] = ConfigRecord({**content["mest"], "round": 1, "mutate": order["mutate"]})
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), flat)
    message = Message(content, 1, "train")
    marks[READ] = time.monotonic()
    reply = app(message, context)
    marks[TRAINED] = time.monotonic()
    if reply.has_error():
        raise SystemExit(f"error: {reply.error.reason}")
    metrics = reply.content.metric_records["metrics"]
    _check_one_batch(int(metrics["presented"]), int(metrics["num-examples"]))
    return marks, to_objects(from_record(reply.content))


def _check_one_batch(presented: int, examples: int) -> None:
    if presented != examples:
        raise SystemExit(f"error: {presented} examples were presented, of {examples}: no one step")


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def main() -> None:
    """Train, and print."""
    side, folder = sys.argv[1], Path(sys.argv[2])
    marks, made = {"lean": lean, "stock": stock}[side](folder)
    digest = sha256()
    for name in sorted(made):
        digest.update(name.encode() + made[name])
    print(json.dumps({"marks": marks, "update": digest.hexdigest()}))


if __name__ == "__main__":
    main()
