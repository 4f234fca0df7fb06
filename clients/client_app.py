"""The Flower ClientApp: the same code in a simulated fleet, under ``flwr run`` and on a device."""

import logging

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

import mest_fed
from clients.isolation import alone, isolated
from mest_fed.errors import OutOfMemoryError, OverBudgetError
from mest_fed.schema import FailureKind, code_of_failure

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
def train(message: Message, context: Context) -> Message:
    """Train one round and send the sparse update, or an error that says why there is none."""
    try:
        return _train(message, context)
    except OverBudgetError as error:
        return _failure(FailureKind.OVER_BUDGET, error, message)
    except (OutOfMemoryError, MemoryError) as error:
        return _failure(FailureKind.OUT_OF_MEMORY, error, message)


@isolated
def _train(message: Message, context: Context) -> Message:
    from clients.handlers import train as answer

    return answer(message, context)


def _failure(kind: FailureKind, error: Exception, message: Message) -> Message:
    reason = f"{type(error).__name__}: {error}"
    return Message(Error(code_of_failure(kind), reason), reply_to=message)


@app.evaluate()
@isolated
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on this client's held-out examples."""
    from clients.handlers import evaluate as answer

    return answer(message, context)
