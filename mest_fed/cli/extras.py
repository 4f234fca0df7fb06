"""A clear word when an optional part is not installed."""

from importlib.util import find_spec

from mest_fed.errors import InputError


def needs(extra: str, *modules: str) -> None:
    """Check that modules can be imported.

    Raises
    ------
    InputError
        If one is missing; says which extra brings it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise InputError(f"{missing[0]} is not installed; run: pip install 'mest-fed[{extra}]'")
