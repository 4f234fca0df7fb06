"""What tells that a run folder is as a checkpoint left it: digests of files, and of log lines."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mest_fed.config import RunConfig, own_files
from mest_fed.errors import InputError
from mest_fed.server.checkpoint import whole
from mest_fed.server.folder_names import CLIENTS, CONFIG, KERNELS, MEMORY, PARTITIONS, ROUNDS
from mest_fed.server.row_logs import LogDigest, RowLogs, log_bytes

#: Files that are written once, before the first round.
SEALED = (CONFIG, KERNELS, MEMORY, PARTITIONS)


class FolderSeal:
    """Makes and checks the seals of a run folder.

    Parameters
    ----------
    path : Path
        The folder.
    bundle : Path
        Where this process has the code of the run.
    logs : RowLogs
        The folder's.
    key : str
        By what the user asked for the run, for error messages.
    """

    def __init__(self, path: Path, bundle: Path, logs: RowLogs, key: str) -> None:
        self._path, self._bundle, self._logs, self._key = path, bundle, logs, key
        self._files: dict[str, str | None] | None = None

    def take(self, config: RunConfig) -> dict[str, Any]:
        """Return the digests of files, and of log lines, as they are now.

        The files of :data:`SEALED` must be there, or never be. They and those of
        :func:`~mest_fed.config.own_files` are read once.
        """
        if self._files is None:
            names = (*SEALED, *map(self._own_name, own_files(config)))
            self._files = {name: file_digest(self._place(name)) for name in names}
        return {
            "files": self._files,
            "logs": {name: [log.size, log.digest()] for name, log in self._logs.digests.items()},
        }

    def check(self, seal: Mapping[str, Any], *, without: str = "") -> None:
        """Check that the folder is as :meth:`take` found it, but for lines that came later.

        Parameters
        ----------
        seal : mapping
            The seal.
        without : str
            Name of a file that may be another.

        Raises
        ------
        InputError
            If a file is missing or has changed: names it.
        """
        for name, digest in seal["files"].items():
            place = self._place(name)
            if name != without and (found := file_digest(place)) != digest:
                done = "wrote" if name in SEALED else "first read"
                what = "is missing" if found is None else f"has changed since the run {done} it"
                raise InputError(f"{self._key}: {place} {what}")
        for name, (size, digest) in seal["logs"].items():
            path = self._path / name
            log = LogDigest(log_bytes(path)[:size])
            if (log.size, log.digest()) != (size, digest):
                raise InputError(f"{self._key}: {path} has changed since the run wrote it")

    def _own_name(self, file: Path) -> str:
        """Return what a seal calls a user's file: its path, relative in the bundle."""
        bundle = self._bundle
        return str(file.relative_to(bundle) if file.is_relative_to(bundle) else file)

    def _place(self, name: str) -> Path:
        """Return where the file that a seal calls so is today."""
        return (self._path if name in SEALED else self._bundle) / name


def read_seal(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seal that a checkpoint's facts hold.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError
        If there is none, or it is none of :meth:`RunFolder.seal`.
    """
    seal: dict[str, Any] = facts["seal"]
    for size, _ in seal["logs"].values():
        whole(size)
    if set(seal["logs"]) != {ROUNDS, CLIENTS} or not set(seal["files"]) >= set(SEALED):
        raise ValueError("its seal is not of the files of a run")
    return seal


def with_config(seal: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return the seal of the same folder with another ``config.toml``, which is given as text."""
    return {**seal, "files": seal["files"] | {CONFIG: hashlib.sha256(text.encode()).hexdigest()}}


def is_sealed_config(seal: Mapping[str, Any], text: str) -> bool:
    """Say whether a seal is of a folder with this ``config.toml``."""
    return bool(seal["files"][CONFIG] == with_config(seal, text)["files"][CONFIG])


def file_digest(path: Path) -> str | None:
    """Return the digest of a file; None if it does not exist.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
