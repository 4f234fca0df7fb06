"""Checkpoints: everything that a run needs to go on to the same final weights.

All draws derive from (seed, round, ...), so there is no generator state to keep. A checkpoint is
one ``.npz`` file, written beside its place and renamed, so that a file is whole or absent.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mest_fed.errors import InputError
from server.strategy import MestStrategy

Arrays = dict[str, np.ndarray]

_FORMAT = 1


def strategy_arrays(strategy: MestStrategy) -> tuple[Arrays, dict[str, Any]]:
    """Return a strategy's state after a round as arrays and as JSON-able facts.

    The arrays are shared with the strategy, which replaces but never edits them.
    """
    model, downlink = strategy.model, strategy.downlink
    arrays: Arrays = {}
    sections: dict[str, Mapping[str, np.ndarray]] = {
        "weights": model.weights,
        "masks": model.masks,
        "dense": model.dense,
        "newborn": model.newborn,
        **{f"moments:{kind}": tensors for kind, tensors in strategy.optimizer.moments.items()},
        **{f"masks-of:{key.hex()}": masks for key, masks in downlink.mask_sets.items()},
        **{f"tier:{density!r}": masks for density, masks in downlink.tiers.items()},
    }
    for section, tensors in sections.items():
        arrays |= {f"{section}|{name}": array for name, array in tensors.items()}
    facts = {
        "round": strategy.record.round,
        "known": {str(node): key.hex() for node, key in strategy.roster.known_mask.items()},
    }
    return arrays, facts


def restore_strategy(strategy: MestStrategy, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Put a strategy back to where :func:`strategy_arrays` found it."""
    sections: dict[str, Arrays] = {}
    for key, array in arrays.items():
        section, _, name = key.partition("|")
        sections.setdefault(section, {})[name] = array
    model, downlink = strategy.model, strategy.downlink
    model.weights, model.masks = sections.get("weights", {}), sections.get("masks", {})
    model.dense, model.newborn = sections["dense"], sections.get("newborn", {})
    for section, tensors in sections.items():
        kind, colon, value = section.partition(":")
        if kind == "moments" and colon:
            strategy.optimizer.moments[value] = tensors
        elif kind == "masks-of":
            downlink.mask_sets[bytes.fromhex(value)] = tensors
        elif kind == "tier":
            downlink.tiers[float(value)] = tensors
    known = {int(node): bytes.fromhex(key) for node, key in facts["known"].items()}
    strategy.roster.known_mask = known
    strategy.first_round = int(facts["round"])
    strategy.record.round = strategy.first_round
    strategy.record.density = model.state().density(model.spec)


def save_checkpoint(path: Path, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"format": _FORMAT, **facts}).encode()
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, header=np.frombuffer(header, np.uint8), **arrays)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_checkpoint(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read a checkpoint.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another format.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        facts = json.loads(arrays.pop("header").tobytes())
        if facts["format"] != _FORMAT:
            raise InputError(f"{path} has format {facts['format']}; allowed: {_FORMAT}")
    except FileNotFoundError:
        raise InputError(f"no such checkpoint: {path}") from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a whole checkpoint: {error}") from None
    return arrays, facts


def newest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint of the latest round in a folder.

    Raises
    ------
    InputError
        If there is none.
    """
    found = sorted(folder.glob("round-*.npz"))
    if not found:
        raise InputError(f"no checkpoint in {folder}")
    return found[-1]


def checkpoint_name(server_round: int) -> str:
    """Return the file name of a round's checkpoint; names sort by round."""
    return f"round-{server_round:06d}.npz"
