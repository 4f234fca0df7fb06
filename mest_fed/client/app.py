"""The Flower ClientApp: the same code in a simulated fleet, under ``flwr run`` and on a device."""

import logging
from functools import wraps

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

import mest_fed
from mest_fed.client.isolation import Handler, alone, isolated
from mest_fed.errors import (
    MestFedError,
    NotFiniteError,
    ObjectiveError,
    OutOfMemoryError,
    OverBudgetError,
)
from mest_fed.schema import RAISED, FailureKind, code_of_failure

log = logging.getLogger(__name__)
log.info("mest-fed %s from %s", mest_fed.__version__, mest_fed.__file__)

if not alone():
    import mest_fed.client.handlers

app = ClientApp()


def _answered(handler: Handler) -> Handler:
    """On a device of its own, answer with an error in one line where a handler refuses.

    Flower would send, and log, the traceback of the exception.
    """

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except MestFedError as error:
            if not alone():
                raise
            log.error("%s: %s", message.metadata.message_type, error)
            return Message(Error(RAISED, str(error)), reply_to=message)

    return answer


@app.query()
@_answered
@isolated
def query(message: Message, context: Context) -> Message:
    """Tell the server what this device is and how it will train."""
    from mest_fed.client.handlers import query as handle

    return handle(message, context)


@app.train()
@_answered
def train(message: Message, context: Context) -> Message:
    """Train one round and send the sparse update, or an error that says why there is none."""
    try:
        return _train(message, context)
    except NotFiniteError as error:
        return _failure(FailureKind.NOT_FINITE, error, message)
    except ObjectiveError as error:
        return _failure(FailureKind.CLIENT_ERROR, error, message)
    except OverBudgetError as error:
        return _failure(FailureKind.OVER_BUDGET, error, message)
    except (OutOfMemoryError, MemoryError) as error:
        return _failure(FailureKind.OUT_OF_MEMORY, error, message)


@isolated
def _train(message: Message, context: Context) -> Message:
    from mest_fed.client.handlers import train as handle

    return handle(message, context)


def _failure(kind: FailureKind, error: Exception, message: Message) -> Message:
    reason = f"{type(error).__name__}: {error}"
    return Message(Error(code_of_failure(kind), reason), reply_to=message)


@app.train("score")
@_answered
@isolated
def score(message: Message, context: Context) -> Message:
    """Score the weights of the dense initial model, before the first round."""
    from mest_fed.client.handlers import score as handle

    return handle(message, context)


@app.evaluate()
@_answered
@isolated
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on this client's held-out examples."""
    from mest_fed.client.handlers import evaluate as handle

    return handle(message, context)
