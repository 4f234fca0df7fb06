"""modsapp: two mods of its own, one of Flower's, and state from round to round."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod, message_size_mod


def count_mod(message: Message, context: Context, call_next):
    """Count messages by type in the client's state."""
    kind = message.metadata.message_type
    counts = context.state.metric_records.get("counts", MetricRecord())
    counts[kind] = counts.get(kind, 0) + 1
    context.state["counts"] = counts
    return call_next(message, context)


def stamp_mod(message: Message, context: Context, call_next):
    """Write the count into the reply's metrics."""
    reply = call_next(message, context)
    if reply.has_content():
        metrics = reply.content["metrics"]
        metrics["seen"] = sum(context.state["counts"].values())
    return reply


app = ClientApp(mods=[message_size_mod, count_mod, stamp_mod])


@app.train(mods=[fixedclipping_mod])
def train(message: Message, context: Context) -> Message:
    """Move towards a target, with a personal momentum that stays here."""
    partition = context.node_config["partition-id"]
    weights = message.content["arrays"]["weights"].numpy().copy()
    momentum = np.zeros_like(weights)
    if "momentum" in context.state:
        momentum = context.state["momentum"]["momentum"].numpy()
    momentum = np.float32(context.run_config["decay.factor"]) * momentum
    momentum = momentum + (np.float32(1 + partition) - weights)
    context.state["momentum"] = ArrayRecord({"momentum": Array(momentum)})
    arrays = ArrayRecord({"weights": Array(weights + momentum)})
    metrics = MetricRecord({"num-examples": 1 + partition, "step": float(np.abs(momentum).max())})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge by what was kept in training."""
    weights = message.content["arrays"]["weights"].numpy()
    kept = context.state["momentum"]["momentum"].numpy() if "momentum" in context.state else 0.0
    metrics = {
        "num-examples": 1 + context.node_config["partition-id"],
        "distance": float(np.abs(weights - kept).sum()),
        "trained": context.state["counts"].get("train", 0),
    }
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
