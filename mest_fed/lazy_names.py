"""Public names of a package that are imported when they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]], held: dict[str, Any]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    Parameters
    ----------
    package : str
        Name of the package.
    homes : mapping of str to sequence of str
        Module -> the public names that are imported from it.
    held : dict
        The package's ``globals()``, where a name stays once it is imported.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def getattr_(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = held[name] = getattr(import_module(home_of[name]), name)
        return found

    def dir_() -> list[str]:
        return sorted({*held, *home_of})

    return getattr_, dir_
