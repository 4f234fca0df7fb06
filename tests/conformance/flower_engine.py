"""Plays the stock app on Flower's own simulation engine and writes how it ended.

    python flower_engine.py FILE.npz

A process of its own: the engine starts Ray, threads and handlers of signals, and leaves some.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from stock_app import PARTITIONS, app, play, play_strategy, states

#: Stands between the names of a strategy and of one of its arrays.
SEPARATOR = "::"


class Ordered(Grid):
    """Flower's grid with nodes in the order of their partitions and replies in that of messages.

    Flower gives both in any order: node ids are random, and replies come as they are ready.
    Strategies draw positions in the list of nodes and add up floats, so that both orders are in
    the bits of their results.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        while len(nodes := list(grid.get_node_ids())) < PARTITIONS:
            time.sleep(0.1)
        replies = grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes])
        partition = {
            reply.metadata.src_node_id: reply.content["who"]["partition"] for reply in replies
        }
        self._nodes = sorted(partition, key=lambda node: partition[node])

    def get_node_ids(self) -> list[int]:
        return list(self._nodes)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        messages = list(messages)
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        order = {message.metadata.message_id: place for place, message in enumerate(messages)}
        return sorted(replies, key=lambda reply: order[reply.metadata.reply_to_message_id])

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def set_run(self, run):
        self._grid.set_run(run)

    @property
    def run(self):
        return self._grid.run

    def create_message(self, *arguments, **keywords):
        return self._grid.create_message(*arguments, **keywords)

    def get_nodes(self):
        return self._grid.get_nodes()


def main(path: str) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    found: dict[str, np.ndarray] = {}
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        ordered = Ordered(grid)
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
