"""A lean node's round is the round of a client with torch: the same bytes, the same counts."""

import numpy as np
import pytest
from client_parts import context_of, instruction, small_config, start_of, task_of

from mest_fed.client.app import app
from mest_fed.client.capability import capability_of
from mest_fed.data.minibatches import Examples
from mest_fed.link.description import RunDescription
from mest_fed.link.node.programs import NodePrograms
from mest_fed.link.node.worker import NodeState, NodeWorker
from mest_fed.link.server.lean_run import describe_run, order_of
from mest_fed.link.server.task_programs import make_programs
from mest_fed.wire.npy import from_objects, to_objects
from mest_fed.wire.records import from_record, read_totals


def lean_node(config, partition, plan):
    """Return a node that has a partition's examples, and asks the server's side in this process."""
    task = task_of(config)
    run = RunDescription.read(describe_run(task, plan, partition).as_json())
    rows = task.partitions[partition]
    examples = task.data.train.examples
    own = Examples(examples.inputs[rows], examples.targets[rows])
    programs = NodePrograms(lambda wanted: make_programs(task, plan, wanted))
    return NodeWorker(run, own, programs, NodeState())


def rounds_of_both(config, *, rounds=2, mutate=False, partition=1):
    """Yield the replies of a client with torch and of a lean node to the same messages."""
    task = task_of(config)
    context = context_of(config, partition)
    plan = capability_of(task, context).plan
    node, state, known = lean_node(config, partition, plan), start_of(config), None
    for number in range(1, rounds + 1):
        message = instruction(config, state, known=known, number=number, mutate=mutate)
        theirs = app(message, context)
        objects = to_objects(from_record(message.content))
        ours = node.train(objects, number, order_of(task, plan, number, mutate=mutate))
        yield task, theirs, ours
        known = state.masks


CASES = {
    "server mutation": {},
    "client mutation": {"sparsity": {"mutation": "client", "method": "mest-em"}},
    "soft bound": {"sparsity": {"mutation": "client", "method": "mest-ems"}},
    "pattern": {"sparsity": {"scheme": "pattern", "mutation": "client", "method": "mest-ems"}},
    "unstructured": {"sparsity": {"scheme": "unstructured", "mutation": "client"}},
    "channel": {"sparsity": {"scheme": "channel", "mutation": "client"}},
    "batch norm": {"model": {"norm": "batch"}},
    "adam": {"training": {"optimizer": "adam", "learning_rate": 0.01, "clip_norm": 1.0}},
    "proximal": {"training": {"proximal": 0.1}, "sparsity": {"mutation": "client"}},
    "int8": {"wire": {"upload": "int8"}},
    "topk": {"wire": {"upload": "topk:0.1"}, "sparsity": {"mutation": "client"}},
    "dense, int8": {"wire": {"upload": "int8"}, "sparsity": {"method": "dense"}},
    "dense, topk": {"wire": {"upload": "topk"}, "sparsity": {"method": "dense"}},
    "snip": {"sparsity": {"method": "snip"}},
    "forgetting": {"forgetting": {"fraction": 0.3, "start": 0.0, "readmit": True}},
    "dense": {"sparsity": {"method": "dense", "density": 1.0}},
    "augmented": {"data": {"augmentation": "crop-flip"}, "training": {"local_epochs": 2}},
}


@pytest.mark.parametrize("name", CASES)
def test_a_lean_node_sends_what_a_client_with_torch_sends(name):
    config = small_config(**CASES[name])
    mutate = config.sparsity.mutation == "client"
    for task, theirs, (objects, metrics) in rounds_of_both(config, mutate=mutate):
        assert not theirs.has_error(), theirs.error
        expected = to_objects(from_record(theirs.content))
        assert objects.keys() == expected.keys()
        for part, data in expected.items():
            assert bytes(objects[part]) == data, part
        counted = theirs.content.metric_records["metrics"]
        for key in ("num-examples", "presented", "loss-sum", "correct", "density"):
            assert metrics[key] == pytest.approx(counted[key]), key
        assert from_objects(objects).num_bytes > 0
        assert read_totals(counted, task.objective).examples == metrics["presented"]
        assert np.isfinite(metrics["loss-sum"])


@pytest.mark.parametrize("name", ["server mutation", "batch norm", "dense", "forgetting"])
def test_no_batch_stands_while_the_next_one_is_made(name, stands):
    for _ in rounds_of_both(small_config(**CASES[name])):
        pass
    assert len(stands) > 4
    assert not any(stands)
