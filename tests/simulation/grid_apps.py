"""ClientApps and messages for the tests of the grid; worker processes load the apps from here."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from mest_fed.simulation.engine.grid import EngineGrid

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Fit a linear model to data of this partition; count the rounds in the state."""
    partition = int(context.node_config["partition-id"])
    generator = torch.Generator().manual_seed(partition)
    x = torch.randn(600, 300, generator=generator)
    y = x @ torch.ones(300)
    weights = torch.from_numpy(message.content["arrays"]["w"].numpy()).requires_grad_()
    loss = torch.nn.functional.mse_loss(x @ weights, y)
    (gradient,) = torch.autograd.grad(loss, weights)
    updated = (weights - 0.1 * gradient).detach().numpy()
    seen = context.state.get("seen", MetricRecord({"rounds": 0}))
    context.state["seen"] = MetricRecord({"rounds": seen["rounds"] + 1})
    # What one client does to its records must not reach the next.
    message.content["arrays"].clear()
    message.content["config"]["lr"] = -1.0
    metrics = {"num-examples": 100 + partition, "loss": loss.item(), "rounds": seen["rounds"] + 1}
    content = {"arrays": ArrayRecord({"w": Array(updated)}), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """ClientFeedback the learning rate and the sum of the weights."""
    metrics = {
        "num-examples": 1,
        "sum": float(message.content["arrays"]["w"].numpy().sum()),
        "lr": message.content["config"]["lr"],
    }
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    """Change the state, then raise."""
    context.state["seen"]["rounds"] = 99
    context.state["extra"] = ConfigRecord({"left": "behind"})
    raise ValueError(f"no data\nin partition {context.node_config['partition-id']}")


@app.query("odd")
def odd(message: Message, context: Context) -> Message:
    """Do what no client should, by partition."""
    if context.node_config["partition-id"] == 0:
        raise SystemExit("leaving")
    return None


@app.query("die")
def die(message: Message, context: Context) -> Message:
    """Take the process down: partition 1 once, partition 2 always."""
    partition = context.node_config["partition-id"]
    once = Path(str(message.content["config"]["folder"])) / "died"
    if partition == 2 or (partition == 1 and not once.exists()):
        once.touch()
        os._exit(1)
    context.state["alive"] = MetricRecord({"partition": partition})
    return Message(RecordDict({"who": ConfigRecord({"pid": os.getpid()})}), reply_to=message)


@app.query("sleep")
def sleep(message: Message, context: Context) -> Message:
    """Take a long time."""
    time.sleep(60)
    return Message(RecordDict(), reply_to=message)


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Send back what came, and who this is."""
    content = {"arrays": message.content["arrays"], "who": ConfigRecord({"pid": os.getpid()})}
    return Message(RecordDict(content), reply_to=message)


@app.query("hang")
@app.query("stall")
def hang(message: Message, context: Context) -> Message:
    """Take a long time in one partition, which the message names; else count in the state."""
    partition = context.node_config["partition-id"]
    context.state["seen"] = MetricRecord({"partition": partition})
    if partition == message.content["config"]["hangs"]:
        time.sleep(60)
    return Message(RecordDict(), reply_to=message)


def model(num_weights: int = 300) -> RecordDict:
    """Return what the server sends: a model large enough to be shared, and a config."""
    weights = np.linspace(-1, 1, num_weights, dtype=np.float32)
    padding = np.arange(8000, dtype=np.float32)
    arrays = ArrayRecord({"w": Array(weights), "padding": Array(padding)})
    return RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": 0.5})})


def to_all(grid: EngineGrid, content: RecordDict, kind: str) -> list[Message]:
    """Return one message for each node."""
    return [Message(content, node_id, kind) for node_id in grid.get_node_ids()]


def facts(replies: Iterable[Message]) -> list[tuple[int, object]]:
    """Return source and content, or error, of each reply, comparable bit for bit."""
    return [
        (reply.metadata.src_node_id, reply.error if reply.has_error() else reply.content)
        for reply in replies
    ]
