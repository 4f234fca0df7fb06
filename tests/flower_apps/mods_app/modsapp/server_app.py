"""modsapp: FedAvgM under client-side clipping, with noise from NumPy's generator."""

import random

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvgM

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train three of the nodes in each round, evaluate on all."""
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - Flower's noise comes from there
    strategy = DifferentialPrivacyClientSideFixedClipping(
        FedAvgM(fraction_train=0.75, server_momentum=0.5),
        noise_multiplier=0.1,
        clipping_norm=context.run_config["clip"],
        num_sampled_clients=3,
    )
    arrays = ArrayRecord({"weights": Array(np.zeros(6, np.float32))})
    strategy.start(grid, arrays, num_rounds=context.run_config["num-server-rounds"])
