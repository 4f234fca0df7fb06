"""legacyapp: components made by a server_fn."""

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


def server_fn(context):
    """Return strategy and configuration."""
    strategy = FedAvg(
        initial_parameters=ndarrays_to_parameters([np.zeros(4, np.float32)]),
        fit_metrics_aggregation_fn=lambda metrics: {"step": max(m["step"] for _, m in metrics)},
    )
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=config)


app = ServerApp(server_fn=server_fn)
