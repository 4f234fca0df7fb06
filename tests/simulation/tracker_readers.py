"""Read back what trackers wrote: for each metric its points (round, value), as written."""

import struct
from collections import defaultdict


def tensorboard_points(folder):
    """Read TFRecord files; a restart forgets what came before it, from its step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    points = defaultdict(list)
    for path in sorted((folder / "tensorboard").iterdir()):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            (length,) = struct.unpack_from("<Q", raw, at)
            event = Event.FromString(raw[at + 12 : at + 12 + length])  # a checksum after each part
            at += 12 + length + 4
            if event.session_log.status == SessionLog.START:
                for key in points:
                    points[key] = [point for point in points[key] if point[0] < event.step]
            for value in event.summary.value:
                points[value.tag].append((event.step, value.simple_value))
    return points


def wandb_points(folder):
    """Read the one offline run: records in LevelDB's log format."""
    import json

    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # the process that writes the file is done with it
    points = defaultdict(list)
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    for raw in log_records(path.read_bytes()):
        history = Record.FromString(raw).history
        for item in history.item:
            key = item.key or "/".join(item.nested_key)
            if not key.startswith("_"):
                points[key].append((history.step.num, json.loads(item.value_json)))
    return points


def log_records(raw, block=32768, header=7):
    """Join the pieces of LevelDB log records; the file's own header is as long as a piece's."""
    at, record = header, b""
    while at + header <= len(raw):
        left = block - at % block
        if left < header:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, at)
        record += raw[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # a whole one, or the last piece of one
            yield record
            record = b""


def mlflow_points(folder):
    client, run = mlflow_run(folder)
    return {
        key: [
            (point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)
        ]
        for key in run.data.metrics
    }


def mlflow_run(folder):
    """Return a client of the store, and the one run in it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mest-fed")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


READERS = {"tensorboard": tensorboard_points, "wandb": wandb_points, "mlflow": mlflow_points}
