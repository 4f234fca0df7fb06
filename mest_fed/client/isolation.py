"""A device answers each message in a child process, so that the kernel's kill costs one round.

When memory runs out the kernel kills the process that it finds worst. A child that offers itself is
that one; its parent, which holds the connection to Flower's node, stays and answers with an
error that says why.
"""

import ctypes
import gc
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import NoReturn

from flwr.app import Context, Message

from mest_fed.errors import MestFedError, OutOfMemoryError
from mest_fed.system.proc import offer_to_be_killed

#: In the environment: the ClientApp's process plays one device alone, as ``mest-fed client`` says.
#: A process that plays several is not split, and what one of them takes cannot be measured.
ALONE = "MEST_FED_DEVICE"

Handler = Callable[[Message, Context], Message]

#: PR_SET_PDEATHSIG of <linux/prctl.h>.
_DEATH_SIGNAL = 1


def alone() -> bool:
    """Say whether this process plays one device alone."""
    return os.environ.get(ALONE, "") == "1"


def isolated(handler: Handler) -> Handler:
    """Run a handler in a child process where this process plays one device alone (Linux).

    The reply, what was changed of ``Context.state`` and an exception reach the parent.

    Raises
    ------
    OutOfMemoryError
        If the child is killed.
    MestFedError
        If it ends otherwise without a reply.
    """

    @wraps(handler)
    def report(message: Message, context: Context) -> Message:
        if not (alone() and sys.platform.startswith("linux")):
            return handler(message, context)
        return _in_child(handler, message, context)

    return report


def _in_child(handler: Handler, message: Message, context: Context) -> Message:
    read_end, write_end = os.pipe()
    parent = os.getpid()
    gc.collect()
    gc.freeze()  # a collection in the child would write to, and so copy, every page that is shared
    with warnings.catch_warnings():
        # Python warns of forks beside other threads. Flower's send heartbeats: no lock of theirs is
        # asked for by the child, and torch has computed nothing yet, so has no threads to lose.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(read_end)
        _work(handler, message, context, (parent, write_end))
    os.close(write_end)
    status = None
    try:
        with os.fdopen(read_end, "rb") as pipe:
            report = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        gc.unfreeze()
        if status is None:  # a signal ends this process
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(child, signal.SIGKILL)
    if status == -signal.SIGKILL:
        raise OutOfMemoryError(
            "the system killed the process that worked for this message (SIGKILL), as it does when "
            "memory runs out"
        )
    if status != 0 or not report:
        raise MestFedError(f"the process that worked for this message ended with status {status}")
    reply, state, error = pickle.loads(report)
    if error is not None:
        raise error
    context.state = state
    return reply


def _work(handler: Handler, message: Message, context: Context, place: tuple[int, int]) -> NoReturn:
    """Run in the child process: send the results, then exit."""
    parent, pipe = place
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        offer_to_be_killed()
        if os.getppid() == parent:
            report = _report(handler, message, context)
            with os.fdopen(pipe, "wb") as stream:
                stream.write(report)
            status = 0
    except BaseException:  # the child ends here, and its status says that it failed
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _report(handler: Handler, message: Message, context: Context) -> bytes:
    try:
        reply = handler(message, context)
    except MemoryError as error:
        return _pickled_error(OutOfMemoryError(str(error) or "no more is given"))
    except Exception as error:  # the parent raises it anew, whatever it is
        if error.__cause__ or not isinstance(error, MestFedError):
            traceback.print_exc()
        return _pickled_error(error)
    return pickle.dumps((reply, context.state, None))


def _pickled_error(error: Exception) -> bytes:
    """Pickle an error; one that cannot be made anew from its text becomes ours."""
    try:
        report = pickle.dumps((None, None, error))
        pickle.loads(report)
    except Exception:  # pickling calls code of the error's class
        plain = MestFedError(f"{type(error).__name__}: {error}")
        report = pickle.dumps((None, None, plain))
    return report
