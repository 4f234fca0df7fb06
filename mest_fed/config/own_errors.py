"""Which thing of a user's own raised an error, so that one line names the thing and its key.

A configuration names things of many kinds, and a run calls them in many places. What such a call
raises is looked at once, where it leaves the run: its traceback says whose code it passed through.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from types import CodeType

from mest_fed.config.load import named_things
from mest_fed.config.sections import RunConfig
from mest_fed.described import described
from mest_fed.errors import MestFedError, OwnThingError
from mest_fed.registry import Registry

#: What the modules of the libraries begin with, whose classes are nobody's own.
_LIBRARIES = ("mest_fed.", "torch.")


@contextmanager
def own_errors(config: RunConfig) -> Iterator[None]:
    """Have an error that a user's own thing raises in the block name the thing and its key.

    Raises
    ------
    OwnThingError
        In place of such an error, which is its cause. Errors of this package, of memory, and those
        that no named thing raised stay what they are.
    """
    try:
        yield
    except (MestFedError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # a user's code may end the process
        if line := _line(config, error):
            raise OwnThingError(line) from error
        raise


def _line(config: RunConfig, error: BaseException) -> str:
    """Say what raised an error; empty if no named thing did."""
    things = list(_own_things(config))
    codes = [frame.f_code for frame, _ in walk_tb(error.__traceback__)][::-1]
    for found in (_defines, _in_its_file):  # a file may hold several things
        for code in codes:
            keys = [(key, name) for key, name, thing in things if found(thing, code)]
            if keys:
                named = " or ".join(f"{key} = {name!r}" for key, name in keys)
                return f"{named}: {described(error)}"
    return ""


def _own_things(config: RunConfig) -> Iterator[tuple[str, str, object]]:
    """Yield (key, name, thing) of the user's own things that a configuration names."""
    for key, choices, name in named_things(config):
        if isinstance(choices, Registry) and not choices.is_builtin(name):
            yield key, name, choices.find(name)


def _defines(thing: object, code: CodeType) -> bool:
    """Whether code is of a function, or of a class or its bases."""
    return any(
        code.co_filename == _file_of(part)
        and f"{code.co_qualname}.".startswith(f"{getattr(part, '__qualname__', '')}.")
        for part in getattr(thing, "__mro__", (thing,))
        if not f"{getattr(part, '__module__', '')}.".startswith(_LIBRARIES)
    )


def _in_its_file(thing: object, code: CodeType) -> bool:
    return code.co_filename == _file_of(thing)


def _file_of(thing: object) -> str | None:
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    return getattr(module, "__file__", None)
