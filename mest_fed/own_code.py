"""Modules of a user's own: those that a process has imported and that are not installed.

A worker may run where the user's files are not. So every worker gets the sources of the driver's
own modules, and imports them from it. A worker that starts late gets the same code, even if a file
was edited meanwhile. A checkpoint holds digests of the same files, so that a run goes on with the
code that it began with.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from mest_fed.described import is_installed
from mest_fed.references import module_of_file


@dataclass(frozen=True)
class Source:
    """A module's source.

    Parameters
    ----------
    file : str
        Where it is on the driver's machine; tracebacks name it.
    text : str
        What is in the file.
    folders : tuple of str or None
        Where a package's other modules are on the driver's machine; None if it is no package.
    """

    file: str
    text: str
    folders: tuple[str, ...] | None = None


@dataclass(frozen=True)
class OwnCode:
    """The sources of modules, by name."""

    sources: Mapping[str, Source]

    @classmethod
    def imported(cls) -> "OwnCode":
        """Take the modules that this process has imported and that are not installed.

        A script counts as a file that a reference names.
        """
        found: dict[str, Source] = {}
        # A copy: other threads import while garbage is collected, as a list of pairs may make it.
        for name, module in sys.modules.copy().items():
            file = getattr(module, "__file__", None)
            if isinstance(module, ModuleType) and isinstance(file, str) and _is_own(file):
                path = Path(file).absolute()
                source = Source(str(path), path.read_text("utf-8"), _folders(module))
                if name != "__main__":
                    found[name] = source
                if not module.__package__:  # a reference may name the file
                    found[module_of_file(path)] = source
        for name in list(found):
            while name := name.rpartition(".")[0]:  # packages without a file
                folders = _folders(sys.modules.get(name)) or ()
                found.setdefault(name, Source(f"<{name}>", "", folders))
        return cls(found)

    @property
    def files(self) -> set[Path]:
        """The files of the sources, by absolute paths."""
        return {Path(source.file) for source in self.sources.values() if source.file[0] != "<"}

    def install(self) -> None:
        """Have this process import these modules from their sources."""
        if self.sources:
            sys.meta_path.insert(0, _Finder(self.sources))


class _Finder(MetaPathFinder, ExecutionLoader):
    """Finds and loads modules whose sources it has."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        source = self._sources.get(name)
        if source is None:
            return None
        # What the driver has not imported is looked for where it would look.
        folders = None if source.folders is None else list(source.folders)
        return spec_from_file_location(
            name, source.file, loader=self, submodule_search_locations=folders
        )

    def get_filename(self, name: str) -> str:
        return self._sources[name].file

    def get_source(self, name: str) -> str:
        return self._sources[name].text

    def is_package(self, name: str) -> bool:
        return self._sources[name].folders is not None


def _folders(module: ModuleType | None) -> tuple[str, ...] | None:
    path = getattr(module, "__path__", None)
    return None if path is None else tuple(path)


def _is_own(file: str) -> bool:
    return file.endswith(".py") and not is_installed(file) and Path(file).is_file()
