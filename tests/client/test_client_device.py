"""A device's own process: what it needs installed, and what its measured peak counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT
from mest_fed.system.peak_meter import can_measure

ROOT = Path(__file__).parents[2]
#: A device of the default run: asked who it is, then trains a round. Only what the extras client
#: and data bring can be imported. Prints the reply's metrics and what was imported while measured.
CODE = """
import json, sys
MISSING = ("ray", "flwr_datasets", "datasets", "pandas", "psutil", "jinja2", "matplotlib")
sys.modules |= dict.fromkeys(MISSING)
import torch
from flwr.app import Context, Message, RecordDict
import mest_fed.client.handlers
import mest_fed.client.memory_guard
from mest_fed.client.app import app
from mest_fed.config import from_table, to_flat
from mest_fed.schema import failure_of_code
from mest_fed.system.peak_meter import PeakMeter
from client_parts import NODE_ID, instruction, start_of
from mest_fed.server.flower_internals import claim_identity

class Noting(PeakMeter):
    def __enter__(self):
        self.before = set(sys.modules)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        print(json.dumps(sorted(sys.modules.keys() - self.before)))

torch.set_num_threads(1)
mest_fed.client.memory_guard.PeakMeter = Noting
train = mest_fed.client.handlers.train_round

def wasteful(*arguments, **options):
    waste = bytearray(b"x" * int(sys.argv[2]))  # and freed again, long before the round's end
    del waste
    return train(*arguments, **options)

mest_fed.client.handlers.train_round = wasteful
claim_identity(run_id=1)
config = from_table({}, "test")
node = {"partition-id": 0, **json.loads(sys.argv[1])}
context = Context(1, NODE_ID, node, RecordDict(), to_flat(config))
capability = app(Message(RecordDict(), NODE_ID, "query"), context).content["capability"]
told = {"device": capability["device"], "examples": capability["examples"]}
reply = app(instruction(config, start_of(config)), context)
if reply.has_error():
    metrics = {"failed": failure_of_code(reply.error.code), "reason": reply.error.reason}
else:
    metrics = reply.content["metrics"]
print(json.dumps(told | dict(metrics)))
"""


def device(waste=0, **node):
    """Run a device that wastes bytes for a moment; return (imports while measured, its reply)."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "client")])
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(node), str(waste)],
        env=os.environ | ALLOCATOR_ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line[0] in "[{"]


@pytest.mark.soak
@pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")
def test_the_default_run_on_a_device():
    imported, reply = device(device="rpi-4", budget="40MB")
    assert reply["examples"] == reply["presented"] > 0
    assert imported == []
    # Training alone: with libraries and files it was 195 MB.
    assert 0.3 * reply["predicted-peak"] < reply["measured-peak"] < 1.3 * reply["predicted-peak"]


@pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")
def test_a_moment_over_the_budget_fails_the_round():
    _, reply = device(waste=60_000_000, device="rpi-4", budget="40MB")
    assert reply["failed"] == "over-budget"
    assert reply["reason"].endswith("(measured) of 40 MB")
