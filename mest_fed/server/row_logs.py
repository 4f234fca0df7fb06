"""The logs of a run folder: files of rows that only grow, and are cut when a run goes on."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mest_fed.errors import InputError
from mest_fed.server.folder_names import CLIENTS, ROUNDS
from mest_fed.server.rows import with_metrics
from mest_fed.strict_json import parse_json
from mest_fed.system.files import replace_file, writing


class LogDigest:
    """Size and digest of a file that only grows."""

    def __init__(self, data: bytes = b"") -> None:
        self.size = 0
        self._hash = hashlib.sha256()
        self.add(data)

    def add(self, data: bytes) -> None:
        """Take in what was appended."""
        self.size += len(data)
        self._hash.update(data)

    def digest(self) -> str:
        """Return the digest of all so far, as hexadecimal digits."""
        return self._hash.hexdigest()


class RowLogs:
    """``rounds.jsonl`` and ``clients.jsonl`` of a run folder.

    Parameters
    ----------
    path : Path
        The folder.

    Attributes
    ----------
    digests : dict of str to LogDigest
        Of what was appended to each log so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.digests = {name: LogDigest() for name in (ROUNDS, CLIENTS)}

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to a log.

        Raises
        ------
        InputError
            If the disk is full; :meth:`read` passes over what was cut off.
        """
        path = self._path / name
        data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        with writing(path), path.open("ab") as file:
            file.write(data)
        self.digests[name].add(data)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a log; empty if it does not exist.

        A last line without its end, which a killed process left, does not count.

        Raises
        ------
        InputError
            If a line is no JSON object with the number of a round; names it.
        """
        return self._rows(name, log_bytes(self._path / name))

    def read_sealed(self, name: str, seal: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a log that a seal is of, without those that came later."""
        size, _ = seal["logs"][name]
        return self._rows(name, log_bytes(self._path / name)[:size])

    def cut_to(self, seal: Mapping[str, Any] | None) -> None:
        """Drop what was logged since a seal, or all; a resumed run logs it again."""
        for name in self.digests:
            path = self._path / name
            size = 0 if seal is None else seal["logs"][name][0]
            data = log_bytes(path)[:size]
            replace_file(path, data)
            self.digests[name] = LogDigest(data)

    def _rows(self, name: str, data: bytes) -> list[dict[str, Any]]:
        rows = []
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            row = _row(line, f"{self._path / name}, line {number}")
            rows.append(with_metrics(row) if name == ROUNDS else row)
        return rows


def _row(line: bytes, where: str) -> dict[str, Any]:
    """Read a line of a log."""
    row = parse_json(line, where, dict)
    number = row.get("round")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise InputError(f"{where}: it is no object with a round from 0")
    return row


def log_bytes(path: Path) -> bytes:
    """Return the bytes of a log; none if it does not exist.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
