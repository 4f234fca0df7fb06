"""What a device does with each kind of instruction."""

from flwr.app import Context, Error, Message, MetricRecord, RecordDict

from mest_fed.client.capability import (
    Capability,
    capability_of,
    capability_record,
    task_of_node,
    too_few_nodes,
    warn_of_scale,
)
from mest_fed.client.downloads import downloads_of
from mest_fed.client.kernels import client_choices
from mest_fed.client.local_round import ClientState, TrainInstruction, evaluate_round, train_round
from mest_fed.client.memory_guard import limit_guard, watched
from mest_fed.client.scoring import score_weights
from mest_fed.client.upload import write_update
from mest_fed.config import own_errors
from mest_fed.devices.cost import work_metrics
from mest_fed.errors import WireError
from mest_fed.schema import RAISED
from mest_fed.sparsity.state import SparseState
from mest_fed.task import Task
from mest_fed.task_scores import dense_task, scores_spec
from mest_fed.wire import decode, encode
from mest_fed.wire.npy import HEADER
from mest_fed.wire.payload import named_masks
from mest_fed.wire.records import from_record, to_record, totals_record
from mest_fed.wire.values import open_codecs


def query(message: Message, context: Context) -> Message:
    """Tell the server what this device is and how it will train."""
    task = task_of_node(context)
    if (reason := too_few_nodes(task, context)) is not None:
        # Not raised: Flower's engine would log a traceback of each node.
        return Message(Error(RAISED, reason), reply_to=message)
    warn_of_scale(task, context)
    return Message(capability_record(task, capability_of(task, context)), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Train one round and send the sparse update."""
    opened = _open(context)
    with own_errors(opened[0].config):
        return _train(message, context, *opened)


def _train(
    message: Message, context: Context, task: Task, who: Capability, kept: ClientState
) -> Message:
    received = _receive(task, message, kept)
    config = message.content.config_records["mest"]
    order = TrainInstruction(int(config["round"]), bool(config["mutate"]))
    choices = client_choices(task, who, kept)
    with watched(task, who, context) as memory:
        guard = limit_guard(task, context, memory)
        result = train_round(task, received, order, who, kept, choices=choices, guard=guard)
    known_hash = named_masks(config[HEADER])
    frozen = frozenset() if order.mutate else task.untrained(who.plan.memory.frozen)
    payload = write_update(task, result, received, kept, known_hash=known_hash, frozen=frozen)
    metrics = {
        "num-examples": task.example_counts(who.partition)[0],
        "presented": result.totals.examples,
        **totals_record(result.totals),
        **work_metrics(result.work),
        "density": result.state.density(task.spec),
        "predicted-peak": who.plan.footprint.total,
        "measured-peak": memory.peak,
        "micro-batch-halved": int(memory.halved),
    }
    content = to_record(payload)
    content["metrics"] = MetricRecord(metrics)
    return Message(content, reply_to=message)


def score(message: Message, context: Context) -> Message:
    """Score the weights of the dense initial model; see :func:`score_weights`."""
    task = task_of_node(context)
    who = capability_of(task, context)
    with own_errors(task.config), watched(task, who, context) as memory:
        received = decode(from_record(message.content), dense_task(task).spec)
        scores, examples, work = score_weights(task, received, who)
    payload, _ = encode(scores, scores_spec(task.spec))
    content = to_record(payload)
    metrics = {
        "num-examples": task.example_counts(who.partition)[0],
        "presented": examples,
        **work_metrics(work),
        "measured-peak": memory.peak,
    }
    content["metrics"] = MetricRecord(metrics)
    return Message(content, reply_to=message)


def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on this client's held-out examples."""
    task, who, kept = _open(context)
    number = int(message.content.config_records["mest"]["round"])
    with own_errors(task.config):
        received = _receive(task, message, kept)
        totals = evaluate_round(task, received, who, number, client_choices(task, who, kept))
        work = task.forward_work(totals.examples)
    metrics = {"num-examples": totals.examples, **totals_record(totals), **work_metrics(work)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _open(context: Context) -> tuple[Task, Capability, ClientState]:
    task = task_of_node(context)
    open_codecs(task.config.wire.download, task.config.wire.upload)
    who = capability_of(task, context)
    return task.at_width(who.plan.density), who, ClientState(context)


def _receive(task: Task, message: Message, kept: ClientState) -> SparseState:
    try:
        return downloads_of(task).receive(message.content, kept)
    except WireError as error:
        raise WireError(f"the server's message was rejected: {error}") from None
