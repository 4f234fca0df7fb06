"""Errors of mest-fed.

MestFedError
├── InputError      what a person typed or a file holds is wrong; the CLI prints one line, status 2
│   ├── BudgetError     no plan fits into the given bytes
│   ├── DeadlineError   no plan within the given bytes is fast enough
│   ├── OwnThingError   a thing of the user's own raised an error, which is the cause
│   └── ObjectiveError  a learning task gives a loss or a metric that is none; on a client it costs
│       │               that round
│       └── NotFiniteError      the loss is not finite, as that of a model that diverged
├── OverBudgetError, OutOfMemoryError       a round of training took too much; costs that round
├── WireError       a message from the network is not acceptable; costs only that message
└── RefusedError    a server does not take this device, or there is none; status 4

DensityWarning      a model that was made sparse is much denser than what was asked for
"""

from collections.abc import Iterable


class MestFedError(Exception):
    """Base of all errors that mest-fed raises on purpose."""


class InputError(MestFedError):
    """What a person gave is wrong: one line that names key, value and what is allowed."""


class BudgetError(InputError):
    """No plan fits into the given number of bytes.

    Parameters
    ----------
    text : str
        What is wrong.
    needs : int
        Bytes of budget that the smallest plan needs; 0 where they are not known.
    """

    def __init__(self, text: str, needs: int = 0) -> None:
        super().__init__(text)
        self.needs = needs

    def of(self, who: str) -> "BudgetError":
        """Return the same error, of somebody's budget."""
        return BudgetError(f"{who}: {self}", self.needs)


class DeadlineError(InputError):
    """No plan within the given bytes does a round in the given seconds."""


class OwnThingError(InputError):
    """A thing of a user's own raised an error, which is the cause; the text names the thing."""


class OverBudgetError(MestFedError):
    """Training took, or would take, more memory than the device's budget; its round has failed."""


class OutOfMemoryError(MestFedError):
    """There was no memory left to train; the device's round has failed."""


class ObjectiveError(InputError):
    """A learning task's loss or metric is not usable; the text says which, and for what."""


class NotFiniteError(ObjectiveError):
    """The loss of a batch is not finite; the text says in which batch."""


class WireError(MestFedError):
    """A message from the network was rejected; the text is the reason."""


class DensityWarning(UserWarning):
    """A model that was made sparse is, as a whole, much denser than what was asked for."""


class RefusedError(MestFedError):
    """A server does not take this device, or none answers; the text is the reason."""


def not_allowed(key: str, value: object, allowed: Iterable[object] | str) -> InputError:
    """Build the error for a value outside its allowed set.

    Parameters
    ----------
    key : str
        What was set, for example ``sparsity.scheme``.
    value : object
        The value that was given.
    allowed : iterable or str
        The allowed values, or a phrase such as ``"a number in (0, 1]"``.
    """
    phrase = allowed if isinstance(allowed, str) else ", ".join(str(item) for item in allowed)
    return InputError(f"{key} = {value!r} is not allowed; allowed: {phrase}")
