"""A ClientApp that edits what it gets and leaves behind what it can; worker processes load it."""

import random

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("seed")
def seed(message: Message, context: Context) -> Message:
    """Seed the global generators, as many training scripts do."""
    partition = int(context.node_config["partition-id"])
    random.seed(partition)
    np.random.seed(partition)  # noqa: NPY002
    torch.manual_seed(partition)
    return Message(RecordDict(), reply_to=message)


@app.query("draw")
def draw(message: Message, context: Context) -> Message:
    """Draw from the global generators without seeding them."""
    drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002
    return Message(RecordDict({"drawn": MetricRecord({"values": drawn})}), reply_to=message)


@app.query("edit")
def edit(message: Message, context: Context) -> Message:
    """Double an array in place, and put the same records into reply and state."""
    arrays = message.content["arrays"]
    doubled = Array(2 * arrays["w"].numpy())
    arrays["w"].data = doubled.data
    message.content["config"]["values"].append(1)
    context.run_config["lr"] = 0.5
    context.node_config["partition-id"] = 7
    context.state["arrays"] = arrays
    return Message(message.content, reply_to=message)


@app.query("kept")
def kept(message: Message, context: Context) -> Message:
    """Send back the state, and how the context looks."""
    content = RecordDict(dict(context.state.items()))
    content["seen"] = ConfigRecord(
        {"lr": context.run_config["lr"], "partition": context.node_config["partition-id"]}
    )
    return Message(content, reply_to=message)


@app.query("defaults")
def defaults(message: Message, context: Context) -> Message:
    """Tell torch's defaults, then leave others behind."""
    seen = {
        "grad": torch.is_grad_enabled(),
        "float32": torch.get_default_dtype() == torch.float32,
        "threads": torch.get_num_threads(),
    }
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    return Message(RecordDict({"seen": ConfigRecord(seen)}), reply_to=message)


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Send back the arrays."""
    return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)


def content(size: int = 8000) -> RecordDict:
    """Return arrays that are large enough for workers to share, and a list."""
    arrays = ArrayRecord({"w": Array(np.arange(size, dtype=np.float32))})
    return RecordDict({"arrays": arrays, "config": ConfigRecord({"values": [0]})})
