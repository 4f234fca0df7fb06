"""Stock Flower apps end with the same bits on Flower's engine and on ours.

Flower's engine plays all strategies once, in a process of its own, ours on no and on two workers.
Everything random is seeded alike, and Flower's nodes and replies are put in order
(:class:`ordered.Ordered`), as ours always are. What is left is arithmetic, so that all bits
must agree. Without that order float sums differ in their last bits, and one test says by how much.
"""

import gc
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from stock_app import PARTITIONS, ROUNDS, STRATEGIES, app, play, play_strategy, states

from mest_fed.server.flower_internals import run_server_app
from mest_fed.simulation.engine.executor import make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import make_nodes

pytestmark = [
    pytest.mark.soak,
    pytest.mark.ray,
]
logging.getLogger("flwr").setLevel(logging.ERROR)

HERE = Path(__file__).parent
Found = dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Found:
    file = tmp_path_factory.mktemp("flower") / "found.npz"
    command = [sys.executable, str(HERE / "flower_engine.py"), str(file)]
    # Left to itself, Flower's engine joins a cluster that another test has on this machine.
    alone = os.environ | {"RAY_ADDRESS": "local"}
    done = subprocess.run(
        command, env=alone, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    found: Found = {}
    with np.load(file, allow_pickle=False) as arrays:
        for key, values in arrays.items():
            strategy, _, name = key.partition("::")
            found.setdefault(strategy, {})[name] = values
    return found


@pytest.fixture(scope="module", params=[0, 2], ids=["serial", "Ray"])
def ours(request: pytest.FixtureRequest) -> Found:
    found: Found = {}
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        found.update(play(grid))
        found["states"] = {"": states(grid)}
        found["any order"] = play_strategy(grid, "FedAvg")

    executor = make_executor(app, request.param)
    try:
        grid = EngineGrid(make_nodes(PARTITIONS), executor)
        run_server_app(server_app, grid)
    finally:
        executor.close()
        gc.collect()
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_ends_with_the_same_bits(strategy: str, ours: Found, flowers: Found) -> None:
    expected = flowers[strategy]
    assert np.abs(expected["w"]).max() > 0.01  # something was learnt
    assert set(ours[strategy]) == set(expected)
    for name, values in expected.items():
        assert ours[strategy][name].dtype == values.dtype
        np.testing.assert_array_equal(ours[strategy][name], values, err_msg=name)


def test_clients_keep_the_same_states(ours: Found, flowers: Found) -> None:
    messages, rounds = ours["states"][""].T
    np.testing.assert_array_equal(ours["states"][""], flowers["states"][""])
    # Clients that always trained: in each round of all strategies but the one that samples.
    assert rounds.max() >= ROUNDS * (len(STRATEGIES) - 1)
    assert (messages > rounds).all()
    assert len(set(rounds)) > 1  # failures and sampling show


def test_without_order_only_the_last_bits_of_sums_differ(ours: Found, flowers: Found) -> None:
    # The mean of ten float32 values in another order: some units in the last place, a step
    # amplifies none of them much.
    for name, values in flowers["any order"].items():
        np.testing.assert_allclose(ours["any order"][name], values, rtol=1e-5, atol=1e-6)
