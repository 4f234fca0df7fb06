"""The Flower ClientApp: the same code in a simulated fleet, under ``flwr run`` and on a device."""

import logging

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import mest_fed
from clients.isolation import alone, isolated

logging.getLogger(__name__).info("mest-fed %s from %s", mest_fed.__version__, mest_fed.__file__)

if not alone():
    import clients.handlers  # noqa: F401  (a device alone imports it in the child that needs it)

app = ClientApp()


@app.query()
@isolated
def query(message: Message, context: Context) -> Message:
    """Tell the server what this device is and how it will train."""
    from clients.handlers import query as answer

    return answer(message, context)


@app.train()
@isolated
def train(message: Message, context: Context) -> Message:
    """Train one round and send the sparse update."""
    from clients.handlers import train as answer

    return answer(message, context)


@app.evaluate()
@isolated
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on this client's held-out examples."""
    from clients.handlers import evaluate as answer

    return answer(message, context)
