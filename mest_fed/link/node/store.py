"""What a node keeps on its disk: one folder that survives a loss of power at any moment.

Files are written whole beside their place, flushed, and renamed; a folder's entry is flushed, too.
So a file is as it was before or as it is afterwards, never in between.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.errors import InputError
from mest_fed.link.node.worker import NodeState
from mest_fed.strict_json import parse_json
from mest_fed.training.forgetting import ForgettingState
from mest_fed.wire import Residual

Array = npt.NDArray[Any]

STATE, ATTEMPTS, VERSION = "state.npz", "attempts.json", 1
_ABOUT = "about"
_MASKS, _FORGETTING = "masks", "forgetting"
_RESIDUAL_MASKS, _RESIDUAL_VALUES = "residual.masks", "residual.values"
_REPLY = "reply"


class NodeFolder:
    """A node's folder.

    Parameters
    ----------
    path : Path
        Made if it does not exist; others may not read it.

    Raises
    ------
    InputError
        If it cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--state: {path} cannot be made: {error.strerror}") from None
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise InputError(f"--state: {path} cannot be written")

    def write(self, name: str, data: bytes, *, secret: bool = False) -> None:
        """Put a file in place, whole.

        Parameters
        ----------
        name : str
            Of the file.
        data : bytes
            All of it.
        secret : bool
            Whether its owner alone may read it, as of a private key.
        """
        place, beside = self.path / name, self.path / f"{name}.new"
        mode = 0o600 if secret else 0o644
        try:
            with suppress(FileNotFoundError):
                beside.unlink()
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(place)
            self._flush()
        except OSError as error:
            raise InputError(f"--state: {place} cannot be written: {error.strerror}") from None

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None if there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            place = self.path / name
            raise InputError(f"--state: {place} cannot be read: {error.strerror}") from None

    def _flush(self) -> None:
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def run_key(run_json: str) -> str:
    """Return what names a run: a node that meets another forgets the state of the first."""
    return hashlib.sha256(run_json.encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What a node made of an instruction, and perhaps has not reported yet.

    Parameters
    ----------
    instruction : str
        Its id.
    objects, metrics : mapping
        As they are reported.
    """

    instruction: str
    objects: Mapping[str, bytes]
    metrics: Mapping[str, float]


def save_state(folder: NodeFolder, state: NodeState, key: str, reply: Reply) -> None:
    """Write what a node keeps from round to round, with the reply of the round that led to it.

    Both are one file: a node that loses its power between training and reporting neither trains
    the round twice nor forgets it.
    """
    arrays: dict[str, Array] = {f"{_MASKS}|{name}": it for name, it in state.masks.items()}
    if state.forgetting is not None:
        arrays[_FORGETTING] = state.forgetting.codes
    if state.residual is not None:
        arrays |= {f"{_RESIDUAL_MASKS}|{n}": it for n, it in state.residual.masks.items()}
        arrays |= {f"{_RESIDUAL_VALUES}|{n}": it for n, it in state.residual.values.items()}
    arrays |= {f"{_REPLY}|{n}": np.frombuffer(it, np.uint8) for n, it in reply.objects.items()}
    about = {"run": key, "instruction": reply.instruction, "metrics": dict(reply.metrics)}
    folder.write(STATE, _pack(about, arrays))


def load_state(folder: NodeFolder, key: str) -> tuple[NodeState, Reply | None]:
    """Read what :func:`save_state` wrote; a fresh state where there is none of this run.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    data = folder.read(STATE)
    if data is None:
        return NodeState(), None
    about, arrays = _unpack(data, folder.path / STATE)
    if about.get("run") != key:
        return NodeState(), None
    parts: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        part, _, rest = name.partition("|")
        parts.setdefault(part, {})[rest] = array
    codes = parts.get(_FORGETTING, {}).get("")
    residual = None
    if _RESIDUAL_MASKS in parts and _RESIDUAL_VALUES in parts:
        residual = Residual(parts[_RESIDUAL_MASKS], parts[_RESIDUAL_VALUES])
    forgetting = None if codes is None else ForgettingState(codes)
    objects = {name: array.tobytes() for name, array in parts.get(_REPLY, {}).items()}
    metrics = {str(name): float(value) for name, value in about["metrics"].items()}
    reply = Reply(str(about["instruction"]), objects, metrics)
    return NodeState(parts.get(_MASKS, {}), forgetting, residual), reply


def attempts_at(folder: NodeFolder, instruction: str) -> int:
    """Count and return how often work on an instruction was begun, this time included."""
    data = folder.read(ATTEMPTS)
    before = 0
    if data is not None:
        with suppress(InputError):
            about = parse_json(data, ATTEMPTS, dict)
            before = int(about["times"]) if about.get("instruction") == instruction else 0
    text = json.dumps({"instruction": instruction, "times": before + 1})
    folder.write(ATTEMPTS, text.encode())
    return before + 1


def _pack(about: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    text = json.dumps({"version": VERSION, **about}).encode()
    file = BytesIO()
    np.savez(file, **{_ABOUT: np.frombuffer(text, np.uint8)}, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _unpack(data: bytes, place: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        with np.load(BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"--state: {place} is damaged: {error}; remove it to begin anew") from None
    about = parse_json(arrays.pop(_ABOUT, np.zeros(0, np.uint8)).tobytes(), str(place), dict)
    if about.get("version") != VERSION:
        raise InputError(f"--state: {place} is of version {about.get('version')}, not {VERSION}")
    return about, arrays
