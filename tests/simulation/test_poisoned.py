"""A fleet of which a fifth sends its updates with the sign flipped, ten times as long."""

from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import Array
from flwr.serverapp import Grid
from tiny_run import read_rows, start, tiny_config

from mest_fed.server.flower_internals import run_server_app
from mest_fed.simulation import rounds
from mest_fed.simulation.engine.interfaces import partition_of

FLEET = {
    "run": {"rounds": 16, "seed": 5, "checkpoint_every": 100},
    "data": {"partition": "iid"},
    "sparsity": {"density": 0.3, "method": "static"},
    "training": {"local_epochs": 2, "batch_size": 16, "learning_rate": 0.1},
    "server": {"clients_per_round": 10, "evaluate_every": 16, "evaluate_clients_every": 0},
    "fleet": {"devices": 10, "mix": "rpi-4:1"},
    "behaviour": {"availability": "always"},
}
POISONED = (3, 8)


class Poisoned(Grid):
    """Alters the replies of some devices; replies are not summed in the workers."""

    def __init__(self, grid):
        self._grid, self.altered = grid, 0

    def __getattr__(self, name):
        if name == "sum_in_workers":
            raise AttributeError(name)
        return getattr(self._grid, name)

    run = property(lambda self: self._grid.run)

    def set_run(self, run):
        self._grid.set_run(run)

    def create_message(self, *arguments, **keywords):
        return self._grid.create_message(*arguments, **keywords)

    def get_node_ids(self):
        return self._grid.get_node_ids()

    def push_messages(self, messages):
        return self._grid.push_messages(messages)

    def pull_messages(self, names):
        return self._grid.pull_messages(names)

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        sent = {each.metadata.dst_node_id: each for each in messages}
        for reply in self._grid.send_and_receive(messages, timeout=timeout):
            node_id = reply.metadata.src_node_id
            if reply.metadata.message_type == "train" and partition_of(node_id) in POISONED:
                self._alter(reply, sent[node_id])
            yield reply

    def _alter(self, reply, instruction):
        self.altered += 1
        arrays = reply.content["arrays"]
        for name, array in instruction.content["arrays"].items():
            before, after = array.numpy(), arrays[name].numpy()
            arrays[name] = Array((before - 10 * (after - before)).astype(np.float32))


def accuracy(folder, *, poisoned=True, **server):
    """Return the accuracy that a run ends with."""
    grids = []

    def run(app, grid, **keywords):
        grids.append(Poisoned(grid))
        return run_server_app(app, grids[0] if poisoned else grid, **keywords)

    config = tiny_config(**FLEET | {"server": FLEET["server"] | server})
    with patch.object(rounds, "run_server_app", run):
        rows = read_rows(start(folder, config), "rounds")
    assert grids[0].altered == (len(POISONED) * 16 if poisoned else 0)
    assert all(row["tasks"]["ok"] == 10 for row in rows[1:])
    return rows[-1]["accuracy"]


@pytest.mark.soak
def test_the_mean_collapses_and_what_is_robust_stays(tmp_path):
    clean = accuracy(tmp_path / "clean", poisoned=False)
    assert clean > 0.9
    assert accuracy(tmp_path / "mean") < 0.3
    assert accuracy(tmp_path / "trimmed", trim=0.2) > clean - 0.06
    assert accuracy(tmp_path / "median", clip_median=1.0) > clean - 0.08
    assert accuracy(tmp_path / "both", trim=0.2, clip_median=1.0) > clean - 0.06
    # A fixed bound of honest updates' length at first is too long for those of the end.
    assert accuracy(tmp_path / "fixed", clip_norm=2.0) > 0.6
