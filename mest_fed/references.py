"""References, ``package.module:attribute`` or ``file.py:attribute``: to things, and back to names.

A file is imported under a name made from its path, once in a process, and the same in all.
"""

import os
import sys
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from mest_fed.described import described
from mest_fed.errors import InputError, MestFedError

#: What a name may be beside a registered one.
REFERENCES = ("package.module:attribute", "file.py:attribute")


def is_reference(name: str) -> bool:
    """Say whether a name has the form ``package.module:attribute`` or ``file.py:attribute``."""
    place, colon, attribute = name.rpartition(":")
    if not colon or not all(part.isidentifier() for part in attribute.split(".")):
        return False
    return place.endswith(".py") or all(part.isidentifier() for part in place.split("."))


def absolute_reference(reference: str, folder: Path | None = None) -> str:
    """Return a reference in which the path of a file, if it has one, is absolute."""
    place, _, attribute = reference.rpartition(":")
    if not place.endswith(".py"):
        return reference
    return f"{os.path.abspath((folder or Path()) / Path(place).expanduser())}:{attribute}"


def reference_of(thing: object) -> str:
    """Return the reference that leads to a function or class; empty if none does.

    It names the file of a module that is in no package: a script, or a file beside it, which other
    processes may not find by its name.
    """
    module = sys.modules.get(getattr(thing, "__module__", ""))
    name = getattr(thing, "__qualname__", "<unnamed>")
    file = getattr(module, "__file__", None)
    if module is None or not all(part.isidentifier() for part in name.split(".")):
        return ""
    if not module.__package__ and file is not None and file.endswith(".py"):
        return f"{os.path.abspath(file)}:{name}"
    return "" if module.__name__ == "__main__" else f"{module.__name__}:{name}"


def resolve(reference: str) -> object:
    """Return what a reference stands for; a file is executed once in a process.

    Raises
    ------
    InputError
        If the module or file cannot be imported, or has no such attribute.
    """
    place, _, attribute = reference.rpartition(":")
    try:
        found: object = _from_file(Path(place)) if place.endswith(".py") else import_module(place)
    except MestFedError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import {place}: {described(error)}") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise InputError(f"{place} has no attribute {attribute!r}") from None
    return found


def _from_file(path: Path) -> ModuleType:
    """Import a file, once in a process, under a name made from its path.

    Its folder can be imported from afterwards, as if the file were run as a script. A process that
    was given the file's source may lack the file.
    """
    path = path.expanduser()
    name = module_of_file(path)
    if name in sys.modules or find_spec(name) is not None:
        return import_module(name)
    path = path.resolve()
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    for module in sys.modules.copy().values():  # the script that runs, or a module imported by name
        if getattr(module, "__file__", None) == str(path) and not module.__package__:
            return module
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def module_of_file(path: Path) -> str:
    """Return the name under which a file is imported: the same in every process."""
    digest = blake2b(os.path.abspath(path).encode(), digest_size=6).hexdigest()
    return f"{path.stem}_{digest}"
