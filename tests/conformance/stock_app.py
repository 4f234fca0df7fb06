"""A stock Flower app that any engine may run: one client, and a server that plays all strategies.

Nothing here knows an engine. Clients depend on their partition and on what they kept alone, so that
two engines, whose node ids differ, can be compared.
"""

import random
from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.serverapp import Grid
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Result, Strategy

PARTITIONS = 10
ROUNDS = 2
#: The client that raises in the second round, wherever the server asks for failures.
FAILING = 4
CLIPPING = "clipping_norm"


def counting_mod(message: Message, context: Context, call_next: Callable) -> Message:
    """Count what passes, in the client's state: a user's own mod. Who it is is asked of some."""
    if message.metadata.message_type == "query":
        return call_next(message, context)
    passed = context.state.get("passed", MetricRecord({"messages": 0}))["messages"]
    context.state["passed"] = MetricRecord({"messages": passed + 1})
    return call_next(message, context)


def clipping_mod(message: Message, context: Context, call_next: Callable) -> Message:
    """Apply the stock mod that the strategy's wrapper asks for, if it does."""
    config = message.content.config_records.get("config", {})
    if message.metadata.message_type != "train" or CLIPPING not in config:
        return call_next(message, context)
    mod = adaptiveclipping_mod if config.get("adaptive") else fixedclipping_mod
    return mod(message, context, call_next)


app = ClientApp(mods=[counting_mod, message_size_mod, arrays_size_mod, clipping_mod])


def examples_of(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (n, 6) and targets (n, 2) of this client; n differs between clients."""
    partition = int(context.node_config["partition-id"])
    generator = np.random.default_rng(partition)
    inputs = generator.standard_normal((20 + 3 * partition, 6)).astype(np.float32)
    slope = np.array([[1, -1], [2, 0], [0, 1], [-1, 1], [0.5, 2], [1, 1]], np.float32)
    return inputs, product(inputs, slope) + np.float32(0.1 * partition)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the matrix product, summed in one order on any number of threads."""
    return (a[:, :, None] * b[None]).sum(axis=1)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take three steps of linear regression; the step length falls with the rounds seen so far."""
    config = message.content["config"]
    partition = int(context.node_config["partition-id"])
    seen = context.state.get("seen", MetricRecord({"rounds": 0}))["rounds"]
    context.state["seen"] = MetricRecord({"rounds": seen + 1})
    if config.get("failing") and config["server-round"] == 2 and partition == FAILING:
        raise ValueError("no battery left")
    # The server samples and makes noise with the same generators, in a process of its own.
    random.seed(partition)
    np.random.seed(partition)  # noqa: NPY002 - as most users' clients do
    inputs, targets = examples_of(context)
    model = {name: array.numpy().copy() for name, array in message.content["arrays"].items()}
    step = np.float32(float(config["lr"]) / (1 + seen))
    for _ in range(3):
        error = product(inputs, model["w"]) + model["b"] - targets
        model["w"] -= step * product(inputs.T, error) / len(inputs)
        model["b"] -= step * error.mean(axis=0)
    metrics = {"num-examples": len(inputs), "train_loss": float((error**2).mean()), "seen": seen}
    if config.get("adaptive") or config.get("alike"):
        metrics["num-examples"] = 1
    # What a client does to its records reaches nobody else.
    message.content["config"]["lr"] = -1.0
    arrays = ArrayRecord({name: Array(values) for name, values in model.items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Report the loss of the received model, and what this client kept."""
    inputs, targets = examples_of(context)
    arrays = message.content["arrays"]
    error = product(inputs, arrays["w"].numpy()) + arrays["b"].numpy() - targets
    metrics = {
        "num-examples": len(inputs),
        "loss": float((error**2).mean()),
        "rounds": context.state["seen"]["rounds"] if "seen" in context.state else 0,
        "passed": context.state["passed"]["messages"],
    }
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


@app.query()
def who(message: Message, context: Context) -> Message:
    """Tell the partition."""
    partition = int(context.node_config["partition-id"])
    return Message(RecordDict({"who": ConfigRecord({"partition": partition})}), reply_to=message)


@app.query("kept")
def kept(message: Message, context: Context) -> Message:
    """Tell what the state holds."""
    numbers = {name: next(iter(record.values())) for name, record in context.state.items()}
    return Message(RecordDict({"kept": MetricRecord(numbers)}), reply_to=message)


def adam(kind: type[Strategy]) -> Strategy:
    return kind(eta=0.1, tau=0.01)


#: Name -> the strategy, and what goes into the configuration of its rounds.
STRATEGIES: dict[str, tuple[Callable[[], Strategy], dict[str, object]]] = {
    "FedAvg": (stock.FedAvg, {}),
    "FedAvg of some": (lambda: stock.FedAvg(fraction_train=0.5, fraction_evaluate=0.3), {}),
    "FedAvg with failures": (stock.FedAvg, {"failing": True}),
    "FedProx": (lambda: stock.FedProx(proximal_mu=0.1), {}),
    "FedAvgM": (lambda: stock.FedAvgM(server_momentum=0.5), {}),
    "FedAdam": (lambda: adam(stock.FedAdam), {}),
    "FedAdagrad": (lambda: adam(stock.FedAdagrad), {}),
    "FedYogi": (lambda: adam(stock.FedYogi), {}),
    "FedMedian": (stock.FedMedian, {"failing": True}),
    "FedTrimmedAvg": (lambda: stock.FedTrimmedAvg(beta=0.2), {}),
    "Krum": (lambda: stock.Krum(num_malicious_nodes=2), {}),
    "MultiKrum": (
        lambda: stock.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4),
        {"failing": True},
    ),
    "Bulyan": (lambda: stock.Bulyan(num_malicious_nodes=1), {}),
    "QFedAvg": (lambda: stock.QFedAvg(client_learning_rate=0.1, q=0.2), {}),
    "DP, clipped by the server": (
        lambda: stock.DifferentialPrivacyServerSideFixedClipping(
            stock.FedAvg(), 0.1, 0.5, PARTITIONS
        ),
        {},
    ),
    "DP, clipped by clients": (
        lambda: stock.DifferentialPrivacyClientSideFixedClipping(
            stock.FedAvg(), 0.1, 0.5, PARTITIONS
        ),
        {},
    ),
    "adaptive DP, clipped by the server": (
        lambda: stock.DifferentialPrivacyServerSideAdaptiveClipping(
            stock.FedAvg(), 0.1, PARTITIONS
        ),
        {},
    ),
    "adaptive DP, clipped by clients": (
        lambda: stock.DifferentialPrivacyClientSideAdaptiveClipping(
            stock.FedAvg(), 0.1, PARTITIONS
        ),
        {"adaptive": True},
    ),
}

#: What a strategy ended with: arrays by name, and all metrics as a list of numbers.
Ending = dict[str, np.ndarray]


def play(grid: Grid, names: Iterable[str] = tuple(STRATEGIES)) -> dict[str, Ending]:
    """Run strategies one after the other on one fleet, whose clients keep their states."""
    return {name: play_strategy(grid, name) for name in names}


def play_strategy(grid: Grid, name: str) -> Ending:
    """Run one strategy from zero weights, with the global generators of Flower's draws seeded."""
    make, config = STRATEGIES[name]
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002 - the noise of Flower's DP wrappers comes from there
    arrays = ArrayRecord(
        {"w": Array(np.zeros((6, 2), np.float32)), "b": Array(np.zeros(2, np.float32))}
    )
    train_config = ConfigRecord({"lr": 0.1, **config})
    result = make().start(grid, arrays, ROUNDS, timeout=120, train_config=train_config)
    return ending(result)


def ending(result: Result) -> Ending:
    """Return final arrays and the clients' metrics of all rounds."""
    arrays = {name: array.numpy() for name, array in result.arrays.items()}
    for kind in ("train", "evaluate"):
        rounds = getattr(result, f"{kind}_metrics_clientapp")
        numbers = [value for number in sorted(rounds) for value in rounds[number].values()]
        arrays[f"metrics of {kind}"] = np.array(numbers, np.float64)
    return arrays


def states(grid: Grid) -> np.ndarray:
    """Pull, one by one, what clients count in their states: (partitions, counters)."""
    nodes = list(grid.get_node_ids())
    messages = [Message(RecordDict(), node_id, "query.kept") for node_id in nodes]
    left = set(grid.push_messages(messages))
    rows: dict[int, list[int]] = {}
    while left:
        for reply in grid.pull_messages(left):
            left.remove(reply.metadata.reply_to_message_id)
            counts = reply.content["kept"]
            rows[reply.metadata.src_node_id] = [counts[name] for name in sorted(counts)]
    return np.array([rows[node_id] for node_id in nodes])
