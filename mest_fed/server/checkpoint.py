"""Checkpoints: everything that a run needs to go on to the same final weights.

All draws derive from (seed, round, ...), so there is no generator state to keep. A checkpoint is
one ``.npz`` file, written beside its place and renamed, so that a file is whole or absent.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from mest_fed.errors import InputError, WireError
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.modes.in_flight import PENDING_SECTIONS
from mest_fed.server.strategy import MestStrategy
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.system.files import whole_file
from mest_fed.wire import check_masks

log = getLogger("mest_fed.run")

Arrays = dict[str, np.ndarray]

_FORMAT = 2
#: Sections of the best round's model.
_BEST = ("best-masks", "best-values", "best-dense")


def strategy_arrays(strategy: MestStrategy) -> tuple[Arrays, dict[str, Any]]:
    """Return a strategy's state after a round as arrays and as JSON-able facts.

    The arrays are shared with the strategy, which replaces but never edits them.
    """
    model, broadcast = strategy.model, strategy.broadcast
    arrays: Arrays = {}
    sections: dict[str, Mapping[str, np.ndarray]] = {
        "weights": model.weights,
        "masks": model.masks,
        "dense": model.dense,
        "grown": model.grown,
        **{f"moments:{kind}": tensors for kind, tensors in strategy.optimizer.moments.items()},
        **{f"masks-of:{key.hex()}": masks for key, masks in broadcast.mask_sets.items()},
        "selection": strategy.cohorts.selector.arrays(),
        **{f"tier:{density!r}": masks for density, masks in broadcast.tiers.items()},
    }
    best = strategy.best
    if best is not None:
        sections |= dict(zip(_BEST, (best.masks, best.values, best.dense), strict=True))
    sections_kept, facts_kept = strategy.kept()
    for section, tensors in (sections | sections_kept).items():
        arrays |= {f"{section}|{name}": array for name, array in tensors.items()}
    facts = {
        "round": strategy.record.round,
        "known": {str(node): key.hex() for node, key in strategy.clients.known_mask.items()},
        "moments": sorted(strategy.optimizer.moments),
        "kept": facts_kept,
        "progress": strategy.progress.facts(),
    }
    return arrays, facts


def global_state(arrays: Arrays, spec: ModelSpec) -> SparseState:
    """Return the global model that a checkpoint holds.

    Raises
    ------
    InputError
        If the checkpoint is not one of such a model.
    """
    sections = _sections(arrays)
    with checkpoint_of_run():
        _check({name: sections.get(name, {}) for name in ("weights", "masks", "dense")}, spec)
        weights, masks = sections.get("weights", {}), sections.get("masks", {})
        return GlobalModel(spec, weights, masks, sections["dense"], {}).state()


def _sections(arrays: Arrays) -> dict[str, Arrays]:
    sections: dict[str, Arrays] = {}
    for key, array in arrays.items():
        section, _, name = key.partition("|")
        section = "grown" if section == "newborn" else section  # as earlier versions called it
        sections.setdefault(section, {})[name] = array
    return sections


def restore_strategy(strategy: MestStrategy, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Put a strategy back to where :func:`strategy_arrays` found it.

    Raises
    ------
    InputError
        If the checkpoint is not one of the strategy's run.
    """
    sections = _sections(arrays)
    model, broadcast = strategy.model, strategy.broadcast
    with checkpoint_of_run():
        _check(sections, model.spec)
        # The optimizer steps all tensors at once, so that each has moments, or none has.
        everything = {*model.spec.layouts, *model.spec.dense} - model.spec.statistics
        for kind in facts["moments"]:
            if missing := sorted(everything - sections[f"moments:{kind}"].keys()):
                raise ValueError(f"the moments of {missing[0]} are missing")
        known = {int(node): bytes.fromhex(key) for node, key in facts["known"].items()}
        done = whole(facts["round"])
        if done > strategy.config.run.rounds:
            raise ValueError(f"round {done} of {strategy.config.run.rounds}")
        strategy.cohorts.selector.restore(sections.get("selection", {}))
        strategy.restore(sections, facts["kept"])
        if "progress" in facts:  # a checkpoint of an earlier version has none
            strategy.progress.restore(facts["progress"])
        strategy.best = _best_of(sections, model.spec)
    model.weights, model.masks = sections.get("weights", {}), sections.get("masks", {})
    model.dense, model.grown = sections["dense"], sections.get("grown", {})
    for section, tensors in sections.items():
        kind, colon, value = section.partition(":")
        if kind == "moments" and colon:
            strategy.optimizer.moments[value] = tensors
        elif kind == "masks-of":
            broadcast.mask_sets[bytes.fromhex(value)] = tensors
        elif kind == "tier":
            broadcast.tiers[float(value)] = tensors
    strategy.clients.known_mask = known
    strategy.first_round = strategy.record.round = done
    strategy.record.density = model.state().density(model.spec)


@contextmanager
def checkpoint_of_run() -> Iterator[None]:
    """Turn what a checkpoint of something else causes into one line."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"the checkpoint is not of this run: it has no {error}") from None
    except (AttributeError, TypeError, ValueError, OverflowError, InputError, WireError) as error:
        raise InputError(f"the checkpoint is not of this run: {error}") from None


def whole(value: Any) -> int:
    """Return a whole number from 0; TypeError or ValueError if a value is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no whole number from 0")
    return value


def finite(value: Any) -> float:
    """Return a finite number; TypeError or ValueError if a value is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _check(sections: Mapping[str, Arrays], spec: ModelSpec) -> None:
    """Compare all tensors with the model; KeyError, ValueError or WireError if one is wrong."""
    weights = {layer: (layout.num_weights,) for layer, layout in spec.layouts.items()}
    shapes = weights | spec.dense
    for section, tensors in sections.items():
        kind = section.partition(":")[0]
        if kind == "grown":
            for group, slots in tensors.items():
                _check_grown(group, slots, spec)
            continue
        if kind in ("born", "selection", *PENDING_SECTIONS, *_BEST):
            continue
        if kind in ("masks", "masks-of", "tier"):
            check_masks(tensors, spec)
            continue
        for name, tensor in tensors.items():
            if tensor.dtype != np.float32 or tensor.shape != shapes[name]:
                raise ValueError(f"{section} of {name} are {tensor.dtype} of {tensor.shape}")
            if not np.isfinite(tensor).all():
                raise ValueError(f"{section} of {name} are not all finite")
            if kind == "dense" and name in spec.non_negative and (tensor < 0).any():
                raise ValueError(f"{section} of {name} are negative, and a variance")
    for section, names in (("weights", weights), ("dense", spec.dense), ("masks", spec.groups)):
        missing = sorted(names.keys() - sections.get(section, {}).keys())
        if missing:
            raise ValueError(f"the {section} of {missing[0]} are missing")


def _best_of(sections: Mapping[str, Arrays], spec: ModelSpec) -> SparseState | None:
    """Return the best round's model, or None; ValueError or the like if it is wrong."""
    if _BEST[2] not in sections:
        return None
    masks, values, dense = (sections.get(section, {}) for section in _BEST)
    check_masks(masks, spec)
    shapes: dict[str, tuple[int, ...]] = dict(spec.dense)
    for layer, layout in spec.layouts.items():
        shapes[layer] = (len(masks[spec.group_of(layer)]), layout.width)
    for name, tensor in (values | dense).items():
        if tensor.dtype != np.float32 or tensor.shape != shapes[name]:
            raise ValueError(f"the best {name} are {tensor.dtype} of {tensor.shape}")
    if missing := sorted(shapes.keys() - (values | dense).keys()):
        raise ValueError(f"the best {missing[0]} are missing")
    return SparseState(masks, values, dense)


def _check_grown(group: str, slots: np.ndarray, spec: ModelSpec) -> None:
    most = spec.group_layout(group).num_slots
    if slots.dtype != np.int32 or slots.ndim != 1:
        raise ValueError(f"grown slots of {group} are {slots.dtype} of {slots.shape}")
    if len(slots) and not 0 <= slots.min() <= slots.max() < most:
        raise ValueError(f"a grown slot of {group} is out of range [0, {most})")


def save_checkpoint(path: Path, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write a checkpoint: to a temporary file, which is synced and then renamed.

    Raises
    ------
    InputError
        If it cannot be written, as when the disk is full. Earlier checkpoints stay.
    """
    header = json.dumps({"format": _FORMAT, **facts, "arrays": sorted(arrays)}).encode()
    everything: dict[str, Any] = {"header": np.frombuffer(header, np.uint8), **arrays}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, synced=True) as file:
            np.savez(file, **everything)
    except OSError as error:
        raise InputError(
            f"cannot write the checkpoint {path}: {error.strerror or error}; the last one that was "
            "written is whole"
        ) from None


def load_checkpoint(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read a checkpoint.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another format.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        # Ours, and checked: NaN may stand in it, as the loss of a pending update.
        facts = dict(json.loads(arrays.pop("header").tobytes()))
        found, expected = facts["format"], facts.pop("arrays", [])
        if found == _FORMAT and sorted(arrays) != expected:
            raise ValueError("its arrays are not those that were saved")
    except FileNotFoundError:
        raise InputError(f"no such checkpoint: {path}") from None
    except Exception as error:  # what damaged archives raise has no common base
        # NumPy's words advise to load what is damaged unsafely.
        raise InputError(f"{path} is not a whole checkpoint ({type(error).__name__})") from None
    if found != _FORMAT:
        raise InputError(f"{path} has format {found}; allowed: {_FORMAT}")
    return arrays, facts


def load_newest(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read the checkpoint of the latest round; if it is damaged, the one before it.

    Raises
    ------
    InputError
        If there is none, or none is whole.
    """
    found = sorted(folder.glob("round-*.npz"), reverse=True)
    if not found:
        raise InputError(f"no checkpoint in {folder}")
    damaged: list[InputError] = []
    for path in found:
        try:
            loaded = load_checkpoint(path)
        except InputError as error:
            damaged.append(error)
            continue
        for reason in damaged:
            log.warning("%s; an earlier one is taken", reason)
        return loaded
    if len(damaged) == 1:
        raise damaged[0]
    raise InputError(f"{damaged[-1]}; none of the {len(found)} checkpoints in the folder is whole")


def checkpoint_name(server_round: int) -> str:
    """Return the file name of a round's checkpoint; names sort by round."""
    return f"round-{server_round:06d}.npz"
