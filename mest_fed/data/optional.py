"""Libraries that are needed for some data sets and schemes only."""

import importlib
from typing import Any

from mest_fed.errors import InputError


def require(module: str, *, extra: str) -> Any:
    """Import a module of an optional library, as late as possible.

    Raises
    ------
    InputError
        If the library is not installed; the text says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; install it with: pip install 'mest-fed[{extra}]'"
        ) from error
