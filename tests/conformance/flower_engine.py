"""Plays the stock app on Flower's own simulation engine and writes how it ended.

    python flower_engine.py FILE.npz

A process of its own: the engine starts Ray, threads and handlers of signals, and leaves some.
"""

import logging
import os
import sys
import time

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from ordered import Ordered
from stock_app import PARTITIONS, app, play, play_strategy, states

#: Stands between the names of a strategy and of one of its arrays.
SEPARATOR = "::"


def nodes_in_order(grid: Grid) -> list[int]:
    """Ask all nodes for their partitions; return the nodes in the order of those."""
    while len(nodes := list(grid.get_node_ids())) < PARTITIONS:
        time.sleep(0.1)
    replies = grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes])
    partition = {reply.metadata.src_node_id: reply.content["who"]["partition"] for reply in replies}
    return sorted(partition, key=lambda node: partition[node])


def main(path: str) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    found: dict[str, np.ndarray] = {}
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        ordered = Ordered(grid, nodes_in_order(grid))
        endings = play(ordered)
        found["states"] = states(ordered)
        endings["any order"] = play_strategy(grid, "FedAvg")
        for strategy, arrays in endings.items():
            for name, values in arrays.items():
                found[f"{strategy}{SEPARATOR}{name}"] = values

    run_simulation(
        server_app,
        app,
        num_supernodes=PARTITIONS,
        backend_config={
            "init_args": {"num_cpus": 2, "log_to_driver": False, "logging_level": "error"},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
