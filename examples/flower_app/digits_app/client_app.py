"""digits_app: a Flower / PyTorch app."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from digits_app.task import Examples, load_data, make_net
from digits_app.task import test as test_fn
from digits_app.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    net, (examples, _) = received(msg, context)
    config = context.run_config
    loss = train_fn(net, examples, config["local-epochs"], config["learning-rate"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(examples[1])})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    net, (_, examples) = received(msg, context)
    loss, accuracy = test_fn(net, examples)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(examples[1])}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)


def received(msg: Message, context: Context) -> tuple[nn.Module, tuple[Examples, Examples]]:
    """Return the network as it came, and this node's data."""
    net = make_net()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    node = context.node_config
    return net, load_data(node["partition-id"], node["num-partitions"])
