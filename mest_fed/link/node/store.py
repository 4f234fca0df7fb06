"""What a node keeps on its disk: one folder that survives a loss of power at any moment.

Files are written whole beside their place, flushed, and renamed; a folder's entry is flushed, too.
So a file is as it was before or as it is afterwards, never in between.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.errors import InputError, not_allowed
from mest_fed.link.node.worker import NodeState
from mest_fed.strict_json import parse_json
from mest_fed.training.forgetting import ForgettingState
from mest_fed.wire import Residual

Array = npt.NDArray[Any]

LOCK = "lock"
#: What is kept after the last round, and after the round before it.
STATE, BEFORE, ATTEMPTS, VERSION = "state.npz", "before.npz", "attempts.json", 2
#: What of a run's description is the node's plan, which may change while its state goes on.
_OF_PLAN = ("micro_batch", "budget", "predicted_peak")
#: What a run may be given more of, and goes on.
_MAY_GROW = ("rounds",)
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

    def claim(self) -> None:
        """Keep other processes from this folder, until this one ends.

        Raises
        ------
        InputError
            If another process has it.
        """
        handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            allowed = "a folder of its own for each node: another process works in this one"
            raise not_allowed("--state", str(self.path), allowed) from None
        except OSError:  # a file system without locks, as some of the network are
            os.close(handle)
            return
        self._claimed = handle

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

    def copy(self, name: str, other: str) -> None:
        """Give a file another name, too: that of a file which is replaced, or is not there yet."""
        place, beside = self.path / name, self.path / f"{other}.new"
        try:
            with suppress(FileNotFoundError):
                beside.unlink()
            os.link(place, beside)
            beside.replace(self.path / other)
        except FileNotFoundError:
            return
        except OSError:  # a file system without links, as of many memory cards
            if (data := self.read(name)) is not None:
                self.write(other, data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            place = self.path / name
            raise InputError(f"--state: {place} cannot be removed: {error.strerror}") from None

    def _flush(self) -> None:
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def run_key(run_json: str) -> str:
    """Return what names a run: a node that meets another forgets the state of the first."""
    table = parse_json(run_json, "the run's description", dict)
    lasting = {key: value for key, value in table.items() if key not in (*_OF_PLAN, *_MAY_GROW)}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()


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


@dataclass(frozen=True)
class Kept:
    """A node's state after a round, as it is on the disk.

    Parameters
    ----------
    state : NodeState
        After the round.
    round : int
        The last one that the node trained; 0 for none.
    start : str
        Which start of the server asked for that.
    reply : Reply or None
        What the node made of its last instruction.
    """

    state: NodeState
    round: int = 0
    start: str = ""
    reply: Reply | None = None


class StateStore:
    """Keeps a node's state of a run, and the one before its last round.

    A server that was started anew goes on after its last checkpoint, and repeats the rounds since.
    What a node learned in those is void, so it goes back to where it was before them.

    Parameters
    ----------
    folder : NodeFolder
        Where.
    key : str
        Of the run; see :func:`run_key`.

    Attributes
    ----------
    kept : Kept
        What the node goes on from.
    of_another : bool
        Whether there was a state, of another run or another node, which is not gone on from.

    Raises
    ------
    InputError
        If a file is damaged; one line.
    """

    def __init__(self, folder: NodeFolder, key: str) -> None:
        self._folder, self._key = folder, key
        found = self._load(STATE) or self._load(BEFORE)
        self.of_another = found is None and folder.read(STATE) is not None
        self.kept = found or Kept(NodeState())
        self._is_newest = True

    def go_on_from(self, start: str, begun: int) -> Kept | None:
        """Go back to before the rounds that the server repeats.

        Parameters
        ----------
        start : str
            Which start of the server it is.
        begun : int
            Rounds that were done then.

        Returns
        -------
        Kept or None
            What the node goes on from; None if it need not go back.
        """
        if start == self.kept.start:
            return None
        if self.kept.round <= begun:
            self.kept = replace(self.kept, start=start)
            return None
        before = self._load(BEFORE)
        if before is None or before.round > begun:
            before = Kept(NodeState())
            self._folder.remove(BEFORE)
        # What the newest file holds is void: it must not become the one before.
        self._is_newest = False
        self.kept = replace(before, start=start, reply=None)
        return self.kept

    def save(self, state: NodeState, number: int, reply: Reply | None) -> None:
        """Write what a node keeps after a round, with the reply of the round that led to it.

        Both are one file: a node that loses its power between training and reporting neither trains
        the round twice nor forgets it.
        """
        if self._is_newest and self.kept.round < number:
            self._folder.copy(STATE, BEFORE)
        self.kept = Kept(state, number, self.kept.start, reply)
        self._folder.write(STATE, packed(self.kept, self._key))
        self._is_newest = True

    def _load(self, name: str) -> Kept | None:
        data = self._folder.read(name)
        return None if data is None else unpacked(data, self._folder.path / name, self._key)


def attempts_at(folder: NodeFolder, instruction: str) -> int:
    """Count and return how often work on an instruction was begun, this time included."""
    data = folder.read(ATTEMPTS)
    before = 0
    if data is not None:
        with suppress(InputError, KeyError, TypeError, ValueError):  # a damaged file counts nothing
            about = parse_json(data, ATTEMPTS, dict)
            before = int(about["times"]) if about.get("instruction") == instruction else 0
    text = json.dumps({"instruction": instruction, "times": before + 1})
    folder.write(ATTEMPTS, text.encode())
    return before + 1


def packed(kept: Kept, key: str) -> bytes:
    """Return the file of what is kept in the run of a key."""
    state, reply = kept.state, kept.reply or Reply("", {}, {})
    arrays: dict[str, Array] = {f"{_MASKS}|{name}": it for name, it in state.masks.items()}
    if state.forgetting is not None:
        arrays[_FORGETTING] = state.forgetting.codes
    if state.residual is not None:
        arrays |= {f"{_RESIDUAL_MASKS}|{n}": it for n, it in state.residual.masks.items()}
        arrays |= {f"{_RESIDUAL_VALUES}|{n}": it for n, it in state.residual.values.items()}
    arrays |= {f"{_REPLY}|{n}": np.frombuffer(it, np.uint8) for n, it in reply.objects.items()}
    about = {
        "version": VERSION,
        "run": key,
        "round": kept.round,
        "start": kept.start,
        "instruction": reply.instruction,
        "metrics": dict(reply.metrics),
        "arrays": sorted(arrays),
    }
    file = BytesIO()
    header = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(file, **{_ABOUT: header}, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def unpacked(data: bytes, place: Path, key: str) -> Kept | None:
    """Read :func:`packed`; None if it is one of another run, or of another version."""
    try:
        with np.load(BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file}
        about = parse_json(arrays.pop(_ABOUT).tobytes(), _ABOUT, dict)
        if about["version"] != VERSION or about["run"] != key:
            return None
        if about["arrays"] != sorted(arrays):
            raise ValueError("its arrays are not those that were written")
        parts: dict[str, dict[str, Array]] = {}
        for name, array in arrays.items():
            part, _, rest = name.partition("|")
            parts.setdefault(part, {})[rest] = array
        codes = parts.get(_FORGETTING, {}).get("")
        state = NodeState(
            parts.get(_MASKS, {}),
            None if codes is None else ForgettingState(codes),
            Residual(parts.get(_RESIDUAL_MASKS, {}), parts[_RESIDUAL_VALUES])
            if _RESIDUAL_VALUES in parts
            else None,
        )
        objects = {name: array.tobytes() for name, array in parts.get(_REPLY, {}).items()}
        metrics = {str(name): float(value) for name, value in about["metrics"].items()}
        instruction, number = str(about["instruction"]), int(about["round"])
        reply = Reply(instruction, objects, metrics) if instruction else None
        return Kept(state, number, str(about["start"]), reply)
    except Exception as error:  # what damaged archives raise has no common base
        # NumPy's words advise to load what is damaged unsafely.
        kind = type(error).__name__
        raise InputError(f"--state: {place} is damaged ({kind}); remove it to begin anew") from None
