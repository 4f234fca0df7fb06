"""A node's own examples: an ``.npz`` file, a folder of images by class, or a reader of the user's.

Needs NumPy; a folder of images needs Pillow, which is imported then.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
import numpy.typing as npt

from mest_fed.catalogue import NODE_READERS
from mest_fed.data.array_names import NAMES_IN_WORDS, names_among
from mest_fed.data.minibatches import Examples
from mest_fed.errors import InputError, not_allowed
from mest_fed.link.description import InputDescription
from mest_fed.references import is_reference

Array = npt.NDArray[Any]
_ALLOWED = "an .npz file that exists, a folder of images by class, or file.py:function=PATH"
#: Of a long list, so many are named.
_SHOWN = 5

KEY = "--data"
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read_examples(place: str, given: InputDescription) -> Examples:
    """Read a node's examples, in the shape of the run's.

    Parameters
    ----------
    place : str
        Path of an ``.npz`` file or of a folder with a folder for each class; or
        ``file.py:function=PATH``.
    given : InputDescription
        What examples of the run are.

    Raises
    ------
    InputError
        If there is nothing at the place, or it does not fit the run.
    """
    if reader := _reader_of(place):
        inputs, targets = _from_reader(*reader)
    elif _is_folder(place):
        inputs, targets = _from_images(Path(place), given)
    else:
        inputs, targets = _from_npz(Path(place))
    return _checked(inputs, targets, given)


def check_place(place: str) -> None:
    """Check what can be said of a node's examples before a server says what the run's are.

    Parameters
    ----------
    place : str
        As :func:`read_examples` takes it.

    Raises
    ------
    InputError
        If there is nothing at the place that could be examples.
    """
    if reader := _reader_of(place):
        NODE_READERS.find(reader[0])
    elif _is_folder(place):
        _images_of(Path(place), _folders_of(Path(place)))
    else:
        with _npz(Path(place)):
            pass


def _reader_of(place: str) -> tuple[str, str] | None:
    reader, _, path = place.partition("=")
    return (reader, path) if path and is_reference(reader) else None


def _is_folder(place: str) -> bool:
    try:
        return Path(place).is_dir()
    except PermissionError as error:  # of a folder on the way
        raise InputError(f"{KEY}: {place} cannot be read: {error.strerror}") from None


def _from_npz(path: Path) -> tuple[Array, Array]:
    with _npz(path) as (file, inputs, targets):
        return file[inputs], file[targets]


@contextmanager
def _npz(path: Path) -> Iterator[tuple[Any, str, str]]:
    """Yield a file of arrays, and the names of the two that examples are."""
    if path.suffix != ".npz" or not path.is_file():
        raise not_allowed(KEY, str(path), _ALLOWED)
    try:
        with path.open("rb") as stream:
            if not is_zipfile(stream):
                raise InputError(f"{KEY}: {path} cannot be read as .npz: it is no archive")
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            names = list(file)
            found = names_among(names)
            if found is None:
                raise not_allowed(f"{KEY}: arrays of {path}", _few(names), NAMES_IN_WORDS)
            for name in found:
                if _dtype_of(file.zip, f"{name}.npy").hasobject:
                    allowed = "numbers; a list of arrays of unlike shapes makes objects"
                    raise not_allowed(f"{KEY}: {path}: {name}", "Python objects", allowed)
            yield file, *found
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{KEY}: {path} cannot be read: {error.strerror}") from None
    except Exception as error:  # what damaged archives raise has no common base
        text = f"{type(error).__name__}: {error}"
        raise InputError(f"{KEY}: {path} cannot be read as .npz: {text}") from None


def _dtype_of(archive: ZipFile, name: str) -> np.dtype[Any]:
    """Return an array's type, without its values."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        return read(member)[2]


def _few(names: Sequence[str]) -> str:
    """Return names in a row; of many, the first and how many there are."""
    if len(names) <= _SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN:,} more"


def _from_images(folder: Path, given: InputDescription) -> tuple[Array, Array]:
    """Read images as the run's inputs have them: channels, height, width; bytes."""
    if len(given.shape) != 3 or given.shape[0] not in (1, 3) or given.dtype != "float32":
        shape = " x ".join(map(str, given.shape))
        raise InputError(f"{KEY}: a folder of images does not go with inputs of {shape}")
    classes = _classes(folder, given)
    files = [(file, classes[name]) for file, name in _images_of(folder, list(classes))]
    images = np.stack([_image(file, given.shape) for file, _ in files])
    return images, np.array([number for _, number in files], np.int64)


def _images_of(folder: Path, classes: Sequence[str]) -> list[tuple[Path, str]]:
    """Return the images of a folder's folders, each with its folder's name."""
    try:
        files = [
            (file, name)
            for name in classes
            for file in sorted((folder / name).iterdir())
            if file.suffix.lower() in _IMAGES
        ]
    except OSError as error:
        raise InputError(f"{KEY}: {error.filename} cannot be read: {error.strerror}") from None
    if not files:
        allowed = f"a folder of images ({', '.join(_IMAGES)}) for each class"
        raise InputError(f"{KEY} = {str(folder)!r} has no images; allowed: {allowed}")
    return files


def _folders_of(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir() if each.is_dir())
    except OSError as error:
        raise InputError(f"{KEY}: {folder} cannot be read: {error.strerror}") from None


def _classes(folder: Path, given: InputDescription) -> dict[str, int]:
    """Return the folders of classes with their numbers in the run."""
    here = _folders_of(folder)
    names = given.classes or tuple(map(str, range(given.outputs)))
    unknown = [name for name in here if name not in names]
    if unknown or not here:
        found = _few(unknown) or "no folder"
        raise not_allowed(f"{KEY}: folders of {folder}", found, _few(names))
    return {name: names.index(name) for name in here}


def _image(file: Path, shape: tuple[int, ...]) -> Array:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise InputError(
            f"{KEY}: a folder of images needs Pillow; install it with: pip install Pillow"
        ) from None
    channels, height, width = shape
    try:
        with Image.open(file) as image:
            plain = image.convert("L" if channels == 1 else "RGB")
            if plain.size != (width, height):
                plain = plain.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(plain, np.uint8)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{KEY}: {file} cannot be read as an image: {error}") from None
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _from_reader(reader: str, path: str) -> tuple[Array, Array]:
    found = NODE_READERS.build(reader, path)
    if not (isinstance(found, tuple) and len(found) == 2):
        raise InputError(
            f"{KEY}: {reader} gives {type(found).__name__}; allowed: (inputs, targets)"
        )
    try:
        return np.asarray(found[0]), np.asarray(found[1])
    except ValueError as error:
        allowed = "(inputs, targets), each one array"
        raise InputError(
            f"{KEY}: what {reader} gives makes no arrays ({error}); allowed: {allowed}"
        ) from None


def _checked(inputs: Array, targets: Array, given: InputDescription) -> Examples:
    """Return examples of the run's types; refuse those that its model cannot take."""
    for problem in _problems(inputs, targets, given):
        raise InputError(f"{KEY}: {problem}")
    if given.dtype == "int64" or inputs.dtype != np.uint8:
        inputs = inputs.astype(given.dtype, copy=False)
    targets = targets.astype(given.target_dtype, copy=False)
    return Examples(np.ascontiguousarray(inputs), np.ascontiguousarray(targets))


def _problems(inputs: Array, targets: Array, given: InputDescription) -> Iterator[str]:
    if inputs.ndim == 0 or inputs.shape[1:] != given.shape:
        each = ", ".join(map(str, given.shape))
        yield f"inputs of shape {inputs.shape} are not allowed; allowed: (n, {each}), n examples"
        return
    count = len(inputs)
    if targets.shape != (count, *given.target_shape):
        allowed = (count, *given.target_shape)
        yield f"targets of shape {targets.shape} are not allowed; allowed: {allowed}"
        return
    if count == 0:
        yield "there are no examples"
    if inputs.dtype.kind not in "uif" or targets.dtype.kind not in "uif":
        yield f"inputs of {inputs.dtype} and targets of {targets.dtype} are no numbers"
    elif given.target_dtype == "int64" and count:
        if targets.dtype.kind not in "ui":
            yield f"targets of {targets.dtype} are not allowed; allowed: whole numbers"
        elif not given.target_shape and not 0 <= targets.min() <= targets.max() < given.outputs:
            least, most = int(targets.min()), int(targets.max())
            yield f"targets from {least} to {most}; allowed: 0 to {given.outputs - 1}"
    for name, array in (("inputs", inputs), ("targets", targets)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"{name} are not all finite"
