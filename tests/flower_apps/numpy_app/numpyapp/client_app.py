"""numpyapp: linear regression in NumPy."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def load_data(partition):
    """Return inputs (n, 5) and targets (n,) of a partition."""
    generator = np.random.default_rng(partition)
    inputs = generator.standard_normal((30 + partition, 5))
    return inputs, (inputs * np.array([1.0, -2.0, 0.5, 0.0, 3.0])).sum(axis=1) + 0.1 * partition


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take a step, and send the gradient's size beside the weights."""
    inputs, targets = load_data(context.node_config["partition-id"])
    weights = message.content["arrays"]["weights"].numpy().copy()
    error = (inputs * weights).sum(axis=1) - targets
    gradient = (inputs * error[:, None]).mean(axis=0)
    weights -= context.run_config["step"] * gradient
    metrics = {"num-examples": len(inputs), "loss": float((error**2).mean())}
    metrics["gradient"] = [float(x) for x in gradient]
    arrays = ArrayRecord({"weights": Array(weights)})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


@app.query("size")
def size(message: Message, context: Context) -> Message:
    """Tell how many examples there are."""
    examples = len(load_data(context.node_config["partition-id"])[0])
    return Message(RecordDict({"size": MetricRecord({"examples": examples})}), reply_to=message)
