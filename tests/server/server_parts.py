"""Specifications, states and replies by hand for the tests of the server."""

import itertools

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from mest_fed.config import from_table
from mest_fed.nn import read_state
from mest_fed.rng import numpy_generator
from mest_fed.server.flower_internals import set_message_id
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.modes import build_strategy
from mest_fed.sparsity import layout_for
from mest_fed.sparsity.schemes import Channel
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.task import Task
from mest_fed.wire import decode, encode, mask_hash
from mest_fed.wire.records import from_record, to_record

#: Node ids of partitions 0..3; partition p has 10 (p + 1) examples.
NODES = (31, 7, 99, 12)
SCHEMES = ("unstructured", "block", "block:3", "pattern", "channel", "pair")


def spec_for(scheme):
    """Return two sparse layers and a dense tensor; under "pair" the layers share a mask."""
    if scheme == "pair":
        layouts = {"a": Channel((16, 8, 3, 3)), "b": Channel((12, 16, 3, 3), axis="in")}
        return ModelSpec({"a": ("a", "b")}, layouts, {"bias": (3,)})
    layouts = {"a": layout_for(scheme, (16, 8, 3, 3)), "b": layout_for(scheme, (16, 16, 3, 3))}
    return ModelSpec({"a": ("a",), "b": ("b",)}, layouts, {"bias": (3,)})


def line_spec(weights):
    """Return one unstructured layer ``w`` of so many weights in a row."""
    return ModelSpec({"w": ("w",)}, {"w": layout_for("unstructured", (1, weights))}, {})


def line_state(values):
    """Return a state of :func:`line_spec` from position -> value."""
    slots = np.array(sorted(values), np.int32)
    return SparseState({"w": slots}, {"w": column([values[s] for s in sorted(values)])}, {})


def line_model(values, weights):
    """Return a global model of :func:`line_spec`."""
    return GlobalModel.from_state(line_spec(weights), line_state(values))


def column(numbers):
    return np.array(numbers, np.float32)[:, np.newaxis]


def random_masks(spec, density, seed):
    rng, masks = numpy_generator(seed, "masks"), {}
    for group in spec.groups:
        layout = spec.group_layout(group)
        count = min(layout.num_granules, max(1, round(density * layout.num_granules)))
        granules = np.sort(rng.choice(layout.num_granules, count, replace=False))
        variants = rng.integers(layout.variants, size=count)
        masks[group] = (granules * layout.variants + variants).astype(np.int32)
    return masks


def random_state(spec, density=0.3, seed=0, masks=None):
    masks = random_masks(spec, density, seed) if masks is None else masks
    rng, values = numpy_generator(seed, "values"), {}
    for group, layers in spec.groups.items():
        for layer in layers:
            layout = spec.layouts[layer]
            drawn = rng.normal(size=(len(masks[group]), layout.width)).astype(np.float32)
            padding = layout.positions(torch.from_numpy(masks[group])) == layout.num_weights
            drawn[padding.numpy()] = 0
            values[layer] = drawn
    dense = {n: rng.normal(size=s).astype(np.float32) for n, s in spec.dense.items()}
    return SparseState(masks, values, dense)


def dense_and_held(spec, state, layer):
    """Return a layer's flattened dense weight, and where the state holds it."""
    layout, slots = spec.layouts[layer], torch.from_numpy(state.masks[spec.group_of(layer)])
    weight, held = np.zeros(layout.num_weights), np.zeros(layout.num_weights, bool)
    for row, positions in zip(state.values[layer], layout.positions(slots).tolist(), strict=True):
        for value, position in zip(row, positions, strict=True):
            if position < layout.num_weights:
                weight[position], held[position] = value, True
    return weight, held


def metrics(examples, **changes):
    """Return the metrics of an honest reply, with changes; None leaves a key out."""
    honest = {"num-examples": examples, "presented": examples, "loss-sum": 1.5 * examples}
    numbers = (
        honest | {"correct": examples // 2} | {k.replace("_", "-"): v for k, v in changes.items()}
    )
    return MetricRecord({key: value for key, value in numbers.items() if value is not None})


def received(message, spec, masks=None):
    """Decode an instruction as a client does that holds these masks, or none."""
    return decode(
        from_record(message.content), spec, known={mask_hash(masks): masks} if masks else {}
    )


def reply_with(message, state, spec, examples, known=None, **changes):
    """Return a client's reply with a state; ``changes`` are made to its metrics."""
    payload, _ = encode(state, spec, known=known)
    content = to_record(payload)
    content["metrics"] = metrics(examples, **changes)
    return Message(content, reply_to=message)


def error_to(message, reason="out of memory"):
    return Message(Error(1, reason), reply_to=message)


_NUMBERS = itertools.count(1)


def named(message):
    """Give a message an id, as a grid does that sends it."""
    set_message_id(message, f"message {next(_NUMBERS)}")
    return message


class StubGrid:
    """A grid whose nodes report the capability query, and nothing else.

    ``capabilities`` is node id -> the report's record, or a text for an error reply.
    """

    def __init__(self, capabilities):
        self.capabilities = dict(capabilities)
        self.asked = []

    def get_node_ids(self):
        return list(self.capabilities)

    def send_and_receive(self, messages, *, timeout=None):
        for message in messages:
            named(message)
            node_id = message.metadata.dst_node_id
            self.asked.append(node_id)
            report = self.capabilities[node_id]
            if isinstance(report, str):
                yield error_to(message, report)
            else:
                yield Message(RecordDict({"capability": report}), reply_to=message)


def capability(partition, density=0.2, /, **changes):
    """Return what a node answers."""
    honest = {
        "partition": partition,
        "device": "rpi-4",
        "budget": 10**9,
        "density": density,
        "micro-batch": 32,
        "predicted-peak": 10**6,
        "examples": 10 * (partition + 1),
        "held-out": 4,
    }
    changed = honest | {key.replace("_", "-"): value for key, value in changes.items()}
    return ConfigRecord({key: value for key, value in changed.items() if value is not None})


def small_config(**sections):
    """Return a configuration of a small model and four devices, without mutation."""
    table = {
        "run": {"rounds": 8, "seed": 3},
        "model": {"width": 0.25},
        "sparsity": {"density": 0.2, "scheme": "unstructured", "period": 1.0},
        "server": {"clients_per_round": 4, "evaluate_clients_every": 2},
        "fleet": {"devices": 4, "mix": "rpi-4:1"},
    }
    for section, keys in sections.items():
        table[section] = table.get(section, {}) | keys
    return from_table(table, "test")


def strategy_of(**sections):
    """Return a strategy whose model is fresh."""
    task = Task(small_config(**sections))
    return build_strategy(task, GlobalModel.from_state(task.spec, read_state(task.build_model())))


def train_messages(strategy, grid, number=1):
    """Configure a round; return its instructions by node id."""
    messages = strategy.configure_train(number, ArrayRecord(), ConfigRecord(), grid)
    return {message.metadata.dst_node_id: named(message) for message in messages}


def evaluate_messages(strategy, grid, number):
    messages = strategy.configure_evaluate(number, ArrayRecord(), ConfigRecord(), grid)
    return {message.metadata.dst_node_id: named(message) for message in messages}
