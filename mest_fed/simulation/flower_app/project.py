"""The folder of a Flower app: what its ``pyproject.toml`` says, and how its apps are loaded."""

import re
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import UserConfigValue

from mest_fed.described import kind_of
from mest_fed.errors import InputError, not_allowed
from mest_fed.references import absolute_reference, resolve
from mest_fed.server.flower_internals import flat_config, parse_overrides

App = TypeVar("App")

PROJECT = "pyproject.toml"
#: Of a Python project, as packaging tools have it; it names the run folder.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_LARGEST_FILE = 1 << 20
_COMPONENTS = "[tool.flwr.app.components]"


@dataclass(frozen=True)
class AppProject:
    """A Flower app as its ``pyproject.toml`` describes it.

    Parameters
    ----------
    folder : Path
        The app's folder, absolute.
    name : str
        Name of the project; the folder's if it has none.
    serverapp, clientapp : str
        Where the apps are, as ``"package.module:attribute"``.
    run_config : mapping of str to scalar
        What the apps find in ``context.run_config``; keys of nested tables are joined by dots.
    num_supernodes : int or None
        Size of the default federation, where the project says it.
    """

    folder: Path
    name: str
    serverapp: str
    clientapp: str
    run_config: Mapping[str, UserConfigValue]
    num_supernodes: int | None

    def with_overrides(self, overrides: Sequence[str]) -> "AppProject":
        """Return the same app with values of its run configuration replaced.

        Parameters
        ----------
        overrides : sequence of str
            As for ``flwr run --run-config``: each holds ``key=value`` pairs, separated by spaces,
            with values as TOML writes them; or the only one is the path of a TOML file.

        Raises
        ------
        InputError
            If one is neither, or a key is not in the app's own configuration.
        """
        given = parse_overrides(overrides)
        for key in given:
            if key not in self.run_config:
                known = ", ".join(self.run_config) or "none: the app has no [tool.flwr.app.config]"
                raise InputError(f"--run-config {key} is not a key of this app; allowed: {known}")
        return replace(self, run_config={**self.run_config, **given})


def read_project(folder: Path) -> AppProject:
    """Read the ``pyproject.toml`` of a Flower app.

    Raises
    ------
    InputError
        If it is missing, is not TOML, or does not name a ServerApp and a ClientApp.
    """
    folder = folder.expanduser().absolute()
    path = folder / PROJECT
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = f"has no {PROJECT}" if folder.is_dir() else "is not a folder"
        raise InputError(f"{folder} {what}; allowed: the folder of a Flower app") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    app = _table(project, path, "tool", "flwr", "app")
    components = _table(app, path, "components", inside="tool.flwr.app")
    try:
        run_config = flat_config(_table(app, path, "config", inside="tool.flwr.app"))
    except ValueError as error:
        raise InputError(f"{path}, [tool.flwr.app.config]: {error}") from None
    name = _table(project, path, "project").get("name")
    return AppProject(
        folder=folder,
        name=name if isinstance(name, str) and _NAME.fullmatch(name) else folder.name,
        serverapp=_reference(components, "serverapp", "ServerApp", path),
        clientapp=_reference(components, "clientapp", "ClientApp", path),
        run_config=run_config,
        num_supernodes=_num_supernodes(_table(project, path, "tool", "flwr", "federations"), path),
    )


def _table(table: Mapping[str, Any], path: Path, *keys: str, inside: str = "") -> dict[str, Any]:
    """Return a table within tables; empty if it is absent."""
    found: Any = table
    for number, key in enumerate(keys, start=1):
        found = found.get(key, {})
        if not isinstance(found, dict):
            name = ".".join(filter(None, (inside, *keys[:number])))
            raise InputError(f"{path}: {name} is not a table")
    return dict(found)


def _reference(components: Mapping[str, Any], key: str, kind: str, path: Path) -> str:
    given = components.get(key)
    if given is None:
        example = f'{key} = "package.module:app"'
        raise InputError(f"{path} names no {kind}; allowed: {example} in {_COMPONENTS}")
    module, colon, attribute = given.partition(":") if isinstance(given, str) else ("", "", "")
    if not (module and colon and attribute):
        raise not_allowed(f"{path}, {_COMPONENTS} {key}", given, '"package.module:attribute"')
    return str(given)


def _num_supernodes(federations: Mapping[str, Any], path: Path) -> int | None:
    default = federations.get("default")
    options = federations.get(default, {}) if isinstance(default, str) else {}
    # A dotted key, options.num-supernodes, is a table to TOML; older apps write it in quotes.
    found = options.get("options", {}).get("num-supernodes") if isinstance(options, dict) else None
    if found is None:
        return None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        key = f"{path}, [tool.flwr.federations.{default}] options.num-supernodes"
        raise not_allowed(key, found, "a whole number from 1")
    return found


@dataclass(frozen=True)
class AppFolder:
    """Puts the folder of an app where Python looks for modules first: also a worker's setup.

    Parameters
    ----------
    path : str
        The folder, absolute.
    files : tuple of (str, bytes)
        Its files by relative path, for machines that do not have it.
    """

    path: str
    files: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def with_files(cls, folder: Path) -> "AppFolder":
        """Take a folder along: its files of at most 1 MB, but for hidden ones and caches."""
        files = []
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            if any(part.startswith((".", "__pycache__")) for part in parts):
                continue
            if path.is_file() and path.stat().st_size <= _LARGEST_FILE:
                files.append((str(path.relative_to(folder)), path.read_bytes()))
        return cls(str(folder), tuple(files))

    def install(self) -> None:
        """Put it first; on a machine without it, write its files to a temporary folder."""
        path = self.path
        if not Path(path).is_dir():
            path = tempfile.mkdtemp(prefix="mest-fed-app-")
            for name, data in self.files:
                file = Path(path, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        if path in sys.path:
            sys.path.remove(path)
        sys.path.insert(0, path)


def load_app(reference: str, kind: type[App], folder: Path) -> App:
    """Load a ServerApp or ClientApp.

    Parameters
    ----------
    reference : str
        ``"package.module:attribute"``; the attribute may have dots.
    kind : type
        What it must be.
    folder : Path
        The app's folder, which stays first on Python's search path.

    Raises
    ------
    InputError
        If the module or the attribute is missing, a module raises or needs a package that is not
        installed, or the attribute is something else.
    """
    AppFolder(str(folder)).install()
    what = f"cannot load the {kind.__name__} {reference!r}"
    try:
        found = resolve(absolute_reference(reference, folder))
    except InputError as error:
        hint = _hint(error.__cause__, reference.partition(":")[0], folder)
        raise InputError(f"{what}: {error}{hint}") from error.__cause__
    if not isinstance(found, kind):
        raise InputError(f"{what}: it is {kind_of(found)}, not a {kind.__name__}")
    return found


def _hint(error: BaseException | None, module: str, folder: Path) -> str:
    """Return what to do about a module that is missing."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and (missing == module or module.startswith(f"{missing}.")):
        return f"; there is no such module in {folder}"
    if missing:
        return f"; install what the app depends on: pip install {folder}"
    return ""
