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

STATE, REPLY, VERSION = "state.npz", "reply.npz", 1
_ABOUT = "about"
_MASKS, _FORGETTING = "masks", "forgetting"
_RESIDUAL_MASKS, _RESIDUAL_VALUES = "residual.masks", "residual.values"


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

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)
        self._flush()

    def _flush(self) -> None:
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def run_key(run_json: str) -> str:
    """Return what names a run: a node that meets another forgets the state of the first."""
    return hashlib.sha256(run_json.encode()).hexdigest()


def save_state(folder: NodeFolder, state: NodeState, key: str) -> None:
    """Write what a node keeps from round to round."""
    arrays: dict[str, Array] = {f"{_MASKS}|{name}": it for name, it in state.masks.items()}
    if state.forgetting is not None:
        arrays[_FORGETTING] = state.forgetting.codes
    if state.residual is not None:
        arrays |= {f"{_RESIDUAL_MASKS}|{n}": it for n, it in state.residual.masks.items()}
        arrays |= {f"{_RESIDUAL_VALUES}|{n}": it for n, it in state.residual.values.items()}
    folder.write(STATE, _pack({"run": key}, arrays))


def load_state(folder: NodeFolder, key: str) -> NodeState:
    """Read what :func:`save_state` wrote; a fresh state where there is none of this run.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    data = folder.read(STATE)
    if data is None:
        return NodeState()
    about, arrays = _unpack(data, folder.path / STATE)
    if about.get("run") != key:
        return NodeState()
    parts: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        part, _, rest = name.partition("|")
        parts.setdefault(part, {})[rest] = array
    codes = parts.get(_FORGETTING, {}).get("")
    residual = None
    if _RESIDUAL_MASKS in parts and _RESIDUAL_VALUES in parts:
        residual = Residual(parts[_RESIDUAL_MASKS], parts[_RESIDUAL_VALUES])
    return NodeState(
        parts.get(_MASKS, {}), None if codes is None else ForgettingState(codes), residual
    )


def save_reply(
    folder: NodeFolder, instruction: str, objects: Mapping[str, bytes], metrics: Mapping[str, float]
) -> None:
    """Keep the reply to an instruction until the server has it: work is not done twice."""
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in objects.items()}
    folder.write(REPLY, _pack({"instruction": instruction, "metrics": dict(metrics)}, arrays))


def load_reply(
    folder: NodeFolder, instruction: str
) -> tuple[dict[str, bytes], dict[str, float]] | None:
    """Return the reply that is kept for an instruction; None if there is none."""
    data = folder.read(REPLY)
    if data is None:
        return None
    try:
        about, arrays = _unpack(data, folder.path / REPLY)
    except InputError:
        return None  # the round is trained again
    if about.get("instruction") != instruction:
        return None
    metrics = {str(name): float(value) for name, value in about["metrics"].items()}
    return {name: array.tobytes() for name, array in arrays.items()}, metrics


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
