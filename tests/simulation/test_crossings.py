"""Settings that were never tried together: each run trains all its devices, or is refused.

A setting is tested where it is built; what breaks are pairs of them.
"""

import random
from contextlib import contextmanager

import pytest
from tiny_run import read_rows, start, tiny_config

from mest_fed.errors import InputError

CHOICES = {
    "model.name": ["resnet8", "cnn2", "mlp"],
    "sparsity.method": [
        *("dense", "static", "set", "rigl", "feddst", "mest-em", "mest-ems", "snip", "heterofl"),
    ],
    "sparsity.mutation": ["server", "client"],
    "sparsity.scheme": ["unstructured", "block", "pattern", "channel"],
    "sparsity.distribution": ["uniform", "erk"],
    "memory.frozen": [0, 0, 1, 2],
    "memory.recompute": ["none", "segments"],
    "memory.saved": ["fp32", "int8", "bf16"],
    "memory.release_gradients": [False, False, True],
    "training.gradient": ["backward", "backward", "backward", "zeroth-order"],
    "training.optimizer": ["sgd", "adam"],
    "training.proximal": [0.0, 0.1],
    "training.clip_norm": [0.0, 1.0],
    "training.engine": ["compiled", "torch"],
    "wire.upload": ["fp32", "fp16", "bf16", "int8", "topk:0.1"],
    "wire.download": ["fp32", "fp16", "bf16"],
    "wire.slopes": [False, False, True],
    "server.mode": ["sync", "sync", "buffered"],
    "server.optimizer": ["fedavg", "fedadam"],
    "server.trim": [0.0, 0.0, 0.2],
    "server.clip_norm": [0.0, 1.0],
    "forgetting.fraction": [0.0, 0.5],
}
#: What makes refusals rarer, and changes nothing of what is tried.
ALWAYS = {
    "run": {"rounds": 2},
    "server": {"concurrency": 4, "buffer": 2, "evaluate_every": 2},
    "forgetting": {"start": 0.0},
}
FEW, DRAWS = 5, 40


def drawn(seed):
    """Return a random configuration that is not refused at once."""
    rng = random.Random(seed)
    for _ in range(2000):
        table = {name: dict(keys) for name, keys in ALWAYS.items()}
        for key, values in CHOICES.items():
            section, name = key.split(".")
            table.setdefault(section, {})[name] = rng.choice(values)
        if table["model"]["name"] == "resnet8":
            table["model"]["norm"] = rng.choice(["batch", "group"])
        with refused_in_a_line():
            return tiny_config(**table)
    raise AssertionError("nothing that is allowed was drawn")


@contextmanager
def refused_in_a_line():
    try:
        yield
    except InputError as refused:
        if "\n" in str(refused):
            raise


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(FEW), pytest.param(range(FEW, DRAWS), marks=pytest.mark.soak)]
)
def test_runs_train_all_their_devices_or_are_refused_in_a_line(seeds, tmp_path):
    trained = 0
    for seed in seeds:
        with refused_in_a_line():
            folder = start(tmp_path / str(seed), drawn(seed))
            rows = read_rows(folder, "clients")
            assert [row["reason"] for row in rows if row["failure"] is not None] == [], seed
            trained += bool(rows)
    assert trained > len(seeds) // 2
