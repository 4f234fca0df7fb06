"""Clients a second of the fleet engine against Flower's own engine, with clients that do nothing.

Both engines run the same ServerApp and ClientApp in turn, in this process, on the same cores. A
round sends the model to all clients; each gives it back. Rounds are timed inside the ServerApp,
so that the engines' start is not in the rates; it is reported beside them. With partial sums, ours
averages in the workers what Flower's FedAvg averages in its server. All figures measured.

    python benchmarks/fleet.py --json fleet.json
"""

import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import numpy as np
from command_line import Parser, positive, run
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from harness import software, write_json

from mest_fed.server.aggregation.averaging import SummedFedAvg
from mest_fed.server.flower_internals import run_server_app
from mest_fed.simulation.engine.executor import make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import make_nodes

#: Convolutions and a classifier, 1.8 MB; and a model of 4 kB.
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "1.8 MB": [
        *[(32, 3, 5, 5), (32,), (64, 32, 5, 5), (64,), (128, 64, 3, 3), (128,)],
        *[(316, 1024), (316,), (10, 316), (10,)],
    ],
    "4 kB": [(8, 3, 5, 5), (8,), (32, 10), (10,)],
}

#: What the server does with the replies.
NOTHING, AVERAGE, SUMS = "nothing", "stock FedAvg", "FedAvg, partial sums in workers"


@dataclass
class Timings:
    """Seconds of one run: from nothing to the end of a first round, then those of each round."""

    started: float = field(default_factory=time.perf_counter)
    start_up: float = 0.0
    rounds: list[float] = field(default_factory=list)


def make_model(name: str) -> ArrayRecord:
    """Return random weights of a model."""
    generator = np.random.default_rng(0)
    shapes = SHAPES[name]
    return ArrayRecord([generator.standard_normal(shape).astype(np.float32) for shape in shapes])


def make_client_app(*, copies: bool) -> ClientApp:
    """Return a client that gives the model back: as it came, or a copy, as if it had trained."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"]
        if copies:
            arrays = ArrayRecord(
                {
                    name: Array(one.dtype, one.shape, one.stype, bytes(bytearray(one.data)))
                    for name, one in arrays.items()
                }
            )
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def make_server_app(
    model: ArrayRecord, timings: Timings, clients: int, *, rounds: int, work: str
) -> ServerApp:
    """Return a server that times rounds of FedAvg, with or without the averaging."""
    made = SummedFedAvg if work == SUMS else FedAvg
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = made(min_train_nodes=clients, min_available_nodes=clients)
        for number in range(rounds + 1):
            start = time.perf_counter()
            messages = strategy.configure_train(number, model, ConfigRecord(), grid)
            replies = list(grid.send_and_receive(messages))
            assert len(replies) == clients
            assert not any(reply.has_error() for reply in replies)
            if work != NOTHING:
                mean, _ = strategy.aggregate_train(number, replies)
                assert mean is not None
            end = time.perf_counter()
            if number == 0:
                timings.start_up = end - timings.started
            else:
                timings.rounds.append(end - start)

    return app


def run_ours(server_app: ServerApp, client_app: ClientApp, clients: int, workers: int) -> None:
    executor = make_executor(client_app, workers)
    try:
        run_server_app(server_app, EngineGrid(make_nodes(clients), executor, stream=True))
    finally:
        executor.close()


def run_flower(server_app: ServerApp, client_app: ClientApp, clients: int, workers: int) -> None:
    run_simulation(
        server_app,
        client_app,
        num_supernodes=clients,
        backend_config={
            "init_args": {"num_cpus": workers, "log_to_driver": False, "logging_level": "error"},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


Engine = Callable[[ServerApp, ClientApp, int, int], None]


@dataclass(frozen=True)
class Case:
    """One row of the result."""

    model: str
    workers: int
    work: str
    copies: bool = False

    @property
    def name(self) -> str:
        """Name of the row."""
        client = ", clients give copies" if self.copies else ""
        return f"{self.work}, {self.model} model, {self.workers} workers{client}"


def measure(case: Case, engine: Engine, clients: int, rounds: int) -> Timings:
    """Run an engine once from start to end."""
    model, timings = make_model(case.model), Timings()
    # On Flower's engine the strategy with partial sums is its parent, FedAvg.
    app = make_server_app(model, timings, clients, rounds=rounds, work=case.work)
    engine(app, make_client_app(copies=case.copies), clients, case.workers)
    return timings


def make_row(case: Case, *, clients: int, rounds: int, runs: int) -> dict[str, object]:
    """Measure both engines in turn, ``runs`` times."""
    ours, peer = [], []
    for _ in range(runs):
        ours.append(measure(case, run_ours, clients, rounds))
        peer.append(measure(case, run_flower, clients, rounds))
    rates, peer_rates = (
        [clients / seconds for run in side for seconds in run.rounds] for side in (ours, peer)
    )
    start_up, peer_start_up = (
        statistics.median(run.start_up for run in side) for side in (ours, peer)
    )
    row = {
        "name": case.name,
        "ours": statistics.median(rates),
        "peer": statistics.median(peer_rates),
        "unit": "clients/s",
        "ratio": statistics.median(rates) / statistics.median(peer_rates),
        "runs": runs,
        "ours_min": min(rates),
        "ours_max": max(rates),
        "peer_min": min(peer_rates),
        "peer_max": max(peer_rates),
        "ours_start_up_seconds": start_up,
        "peer_start_up_seconds": peer_start_up,
    }
    return {
        key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()
    }


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--clients", type=positive, default=200, help="clients in a round")
    parser.add_argument("--rounds", type=positive, default=5, help="timed rounds in a run")
    parser.add_argument("--runs", type=positive, default=3, help="runs of each engine")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    cores = os.cpu_count() or 1
    cases = [
        Case("1.8 MB", cores, SUMS),
        Case("1.8 MB", cores, SUMS, copies=True),
        Case("1.8 MB", cores, AVERAGE),
        Case("1.8 MB", cores, NOTHING),
        Case("1.8 MB", 1, NOTHING),
        Case("4 kB", cores, NOTHING),
    ]
    rows = []
    for case in cases:
        row = make_row(case, clients=options.clients, rounds=options.rounds, runs=options.runs)
        rows.append(row)
        print(f"{row['name']}: {row['ours']} against {row['peer']} clients/s, {row['ratio']} times")
    if options.json:
        write_json(options.json, rows, software=software("flwr", "ray", "numpy"))


if __name__ == "__main__":
    run(main)
