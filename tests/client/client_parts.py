"""Contexts and instructions for the tests of the client."""

from flwr.app import ConfigRecord, Context, Message, RecordDict

from mest_fed.config import from_table, to_flat
from mest_fed.nn import read_state
from mest_fed.process_tasks import PROCESS_TASKS
from mest_fed.wire import encode
from mest_fed.wire.records import to_record

NODE_ID = 55


def small_config(**sections):
    """Return a configuration of a small model and four devices."""
    table = {
        "run": {"rounds": 4, "seed": 3},
        "model": {"width": 0.25},
        "sparsity": {"density": 0.2, "method": "mest-em"},
        "training": {"batch_size": 64, "device": "cpu"},
        "fleet": {"devices": 4, "mix": "rpi-4:1, jetson-nano:1"},
    }
    for section, keys in sections.items():
        table[section] = table.get(section, {}) | keys
    return from_table(table, "test")


def context_of(config, partition=0, state=None, **node):
    """Return a client's context; the state, if given, is one that it had before."""
    return Context(
        run_id=1,
        node_id=NODE_ID,
        node_config={"partition-id": partition, **node},
        state=RecordDict() if state is None else state,
        run_config=to_flat(config),
    )


def task_of(config):
    """Return the task that clients of a configuration have in this process."""
    return PROCESS_TASKS.get(to_flat(config))


def start_of(config):
    """Return the state of the fresh model of a configuration."""
    return read_state(task_of(config).build_model())


def instruction(config, state, kind="train", *, known=None, number=1, mutate=False):
    """Return what the server sends."""
    payload, _ = encode(state, task_of(config).spec, known=known)
    content = to_record(payload)
    order = {"round": number, "mutate": mutate}
    content["mest"] = ConfigRecord({**content["mest"], **order})
    return Message(content, NODE_ID, kind)
