"""legacyapp: a NumPyClient made by a client_fn."""

import numpy as np
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp


class Client(NumPyClient):
    """Moves weights towards the partition's number."""

    def __init__(self, partition):
        self.partition = partition

    def fit(self, parameters, config):
        """Train."""
        (weights,) = parameters
        step = np.float32(0.5) * (np.float32(self.partition) - weights)
        return [weights + step], 10 + self.partition, {"step": float(np.abs(step).max())}

    def evaluate(self, parameters, config):
        """Evaluate."""
        loss = float(np.abs(parameters[0] - self.partition).mean())
        return loss, 10 + self.partition, {"accuracy": 1 / (1 + loss)}


def client_fn(context):
    """Return the client of a node."""
    return Client(context.node_config["partition-id"]).to_client()


app = ClientApp(client_fn=client_fn)
