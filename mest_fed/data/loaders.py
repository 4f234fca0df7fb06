"""Arrays as users have them: what a loader of theirs returns, and ``.npz`` files."""

import inspect
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mest_fed.data.array_names import ARRAY_NAMES, NAMES_IN_WORDS
from mest_fed.data.parts import Column, Part, Values
from mest_fed.data.tables import Columns
from mest_fed.errors import InputError, not_allowed

Loader = Callable[..., Any]


def check_options(name: str, loader: Loader, path: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a loader does not take, and miss none that it needs.

    Parameters
    ----------
    name : str
        ``data.name``, for errors.
    loader : callable
        A user's, called as ``loader(path, **options)``.
    path : str
        ``data.path``.
    options : mapping of str to value
        ``data.options``.

    Raises
    ------
    InputError
        If it cannot be called so.
    """
    try:
        signature = inspect.signature(loader)
    except (TypeError, ValueError):
        return
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    taken = list(signature.parameters)[1:]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for option in options:
            if option not in taken:
                allowed = ", ".join(taken) or "none"
                raise not_allowed(f"data.options.{option}", options[option], allowed)
    try:
        signature.bind(path, **options)
    except TypeError as error:
        raise InputError(f"data.name = {name!r} cannot be called: {error}") from None


def parts_of(name: str, result: Any) -> tuple[Part, Part]:
    """Return what a loader returned as (train, test).

    Each is a pair of arrays or tensors, a triple with groups, or a map-style data set of pairs
    (``__len__`` and ``__getitem__``), perhaps with ``groups``.

    Raises
    ------
    InputError
        If it is something else.
    """
    where = f"data.name = {name!r}"
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise InputError(f"{where} returned {_kind(result)}; allowed: (train, test)")
    return _part(f"{where}: train", result[0]), _part(f"{where}: test", result[1])


def _part(where: str, given: Any) -> Part:
    if isinstance(given, tuple) or (isinstance(given, list) and _are_arrays(given)):
        if len(given) not in (2, 3):
            raise InputError(
                f"{where} has {len(given)} arrays; allowed: (inputs, targets[, groups])"
            )
        arrays = [None if each is None else _array(where, each) for each in given]
        if arrays[0] is None or arrays[1] is None:
            raise InputError(f"{where} has no inputs or no targets; allowed: (inputs, targets)")
        part = array_part(where, arrays[0], arrays[1], arrays[2] if len(arrays) == 3 else None)
    elif hasattr(given, "__len__") and hasattr(given, "__getitem__") and not _is_mapping(given):
        part = _examples(where, given)
    else:
        raise InputError(
            f"{where} is {_kind(given)}; allowed: (inputs, targets[, groups]) or a map-style "
            "data set of pairs"
        )
    places = [f"example {number}" for number in range(len(part))]
    return Part(where, part.inputs, part.targets, part.groups, places)


def _are_arrays(given: list[Any]) -> bool:
    return len(given) in (2, 3) and all(isinstance(each, np.ndarray | Tensor) for each in given)


def _is_mapping(given: Any) -> bool:
    return isinstance(given, Mapping | str | bytes)


def _examples(where: str, dataset: Any) -> Part:
    """Stack the examples of a map-style data set."""
    inputs: list[Values] = []
    targets: list[Values] = []
    for number in range(len(dataset)):
        pair = dataset[number]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(
                f"{where}, example {number} is {_kind(pair)}; allowed: a pair (input, target)"
            )
        for arrays, value, what in zip((inputs, targets), pair, ("input", "target"), strict=True):
            array = _array(f"{where}, example {number}", value)
            if arrays and array.shape != arrays[0].shape:
                raise InputError(
                    f"{where}, example {number}: its {what} has shape {array.shape}; "
                    f"allowed: {arrays[0].shape}, as in example 0"
                )
            arrays.append(array)
    if not inputs:
        raise InputError(f"{where} holds no examples; allowed: at least one")
    groups = getattr(dataset, "groups", None)
    groups = groups() if callable(groups) else groups
    known = None if groups is None else _array(where, groups)
    return array_part(where, np.stack(inputs), np.stack(targets), known)


def _array(where: str, value: Any) -> Values:
    """Return an array of numbers or strings.

    Raises
    ------
    InputError
        If it is ragged, or something else.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return np.asarray(value.float() if str(value.dtype) == "torch.bfloat16" else value)
    if hasattr(value, "getbands"):  # a picture of Pillow: height x width x channels
        pixels = np.asarray(value.convert("RGB") if len(value.getbands()) > 1 else value)
        return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(f"{where} is ragged; allowed: arrays of one shape") from None
    if array.dtype.kind == "O" and not all(isinstance(each, str) for each in array.flat):
        first = next(each for each in array.flat if not isinstance(each, str))
        ragged = isinstance(first, list | tuple | np.ndarray | Tensor)
        given = "ragged" if ragged else f"an array of {_kind(first)}"
        raise InputError(f"{where} is {given}; allowed: arrays of numbers, of one shape")
    return array


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def read_arrays(file: Path, key: str, columns: Columns, prefix: str = "") -> Part | None:
    """Read an ``.npz`` file of arrays.

    Parameters
    ----------
    file : Path
        The file.
    key : str
        Names the setting in errors.
    columns : Columns
        Names of its arrays.
    prefix : {"", "train", "test"}
        For a file with the arrays of several parts, such as ``x_train`` or ``train_images``.

    Returns
    -------
    Part or None
        None where the file has no arrays with the prefix.

    Raises
    ------
    InputError
        If the file cannot be read, or arrays are missing or of unlike lengths.
    """
    where = f"{key}: {file}"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("one array")
            names = _array_names(list(arrays), columns, prefix)
            if names is None:
                if prefix:
                    return None
                raise InputError(
                    f"{where} has the arrays {', '.join(arrays) or 'none'}; allowed: "
                    f"{_wanted(columns)}"
                )
            inputs, targets, groups = (None if name is None else arrays[name] for name in names)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{where} cannot be read ({type(error).__name__}); allowed: an .npz file of "
            f"{NAMES_IN_WORDS}"
        ) from error
    return array_part(where, inputs, targets, groups, names=(str(names[0]), str(names[1])))


def _array_names(
    there: list[str], columns: Columns, prefix: str
) -> tuple[str, str, str | None] | None:
    """Return the names of inputs, targets and groups in a file; None if they are not there."""

    def spelled(name: str) -> str | None:
        forms = (f"{name}_{prefix}", f"{prefix}_{name}") if prefix else (name,)
        return next((form for form in forms if form in there), None)

    given = [(columns.inputs[0], columns.targets[0])] if columns.inputs and columns.targets else []
    for inputs, targets in given or ARRAY_NAMES:
        first, second = spelled(inputs), spelled(targets)
        groups = spelled(columns.groups or "groups")
        if first is not None and second is not None and (groups or not columns.groups):
            return first, second, groups
    return None


def _wanted(columns: Columns) -> str:
    if columns.inputs and columns.targets:
        names = (columns.inputs[0], columns.targets[0], columns.groups)
        return ", ".join(filter(None, names)) + " (data.columns)"
    groups = f" beside {columns.groups}" if columns.groups else ""
    return f"{NAMES_IN_WORDS}{groups}, or data.columns"


def array_part(
    where: str,
    inputs: Any,
    targets: Any,
    groups: Any,
    names: tuple[str, str] = ("inputs", "targets"),
) -> Part:
    """Return arrays as a part.

    Raises
    ------
    InputError
        If lengths differ, or one has no shape.
    """
    for name, array in zip((*names, "groups"), (inputs, targets, groups), strict=True):
        if array is None:
            continue
        if array.ndim == 0:
            raise InputError(f"{where}: {name} are {array.dtype}, no shape; allowed: an array")
        if len(array) != len(inputs):
            raise InputError(
                f"{where}: {len(array)} {name} and {len(inputs)} {names[0]}; allowed: as many"
            )
    return Part(where, [Column(names[0], inputs)], [Column(names[1], targets)], groups)
