"""CIFAR-10 from parquet files or from the Hugging Face hub; decoded once, then mapped."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock

from mest_fed.data.arrays import ArrayData, DataSplit, require
from mest_fed.errors import InputError, not_allowed


def cache_folder() -> Path:
    """Return the cache folder: ``$MEST_FED_CACHE``, or ``mest-fed`` in the user's cache.

    Raises
    ------
    InputError
        If neither the environment nor the system names a home folder.
    """
    if own := os.environ.get("MEST_FED_CACHE"):
        return Path(own)
    if user := os.environ.get("XDG_CACHE_HOME"):
        return Path(user) / "mest-fed"
    try:
        return Path.home() / ".cache" / "mest-fed"
    except RuntimeError:
        raise InputError(
            "MEST_FED_CACHE is not set, and this user has no home folder; allowed: a folder"
        ) from None


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """Return the cache's folder ``key``, built first if it is not there.

    Parameters
    ----------
    key : str
        A file name that stands for the content.
    build : callable
        Fills the empty folder that it gets. The folder takes its name only when this has
        succeeded, and one process builds while others wait.

    Raises
    ------
    InputError
        If the cache folder cannot be written.
    """
    folder = cache_folder() / key
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _build(folder, build)
    except OSError as error:
        raise InputError(
            f"MEST_FED_CACHE = {str(cache_folder())!r}: cannot write to it ({error})"
        ) from error
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}."))
    try:
        build(scratch)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


_FORMATS = ("JPEG", "PNG")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images as in their files, and int64 labels."""

    images: Sequence[bytes]
    labels: npt.NDArray[np.int64]


def decode_images(images: Sequence[bytes], out: npt.NDArray[np.uint8], where: str) -> None:
    """Decode images to RGB.

    One thread: on images as small as these, two threads were measured slower than one, since they
    wait for the interpreter lock more than they decode.

    Parameters
    ----------
    images : sequence of bytes
        JPEG or PNG.
    out : uint8 array
        Filled; shape ``(n, 3, height, width)``.
    where : str
        Names the source in errors.

    Raises
    ------
    InputError
        If an image cannot be decoded or has another size, or Pillow is not installed.
    """
    pillow = require("PIL.Image", extra="data")
    height, width = out.shape[2:]
    for position, content in enumerate(images):
        try:
            with pillow.open(BytesIO(content), formats=_FORMATS) as image:
                if image.size != (width, height):
                    raise ValueError(f"it has {image.size} pixels, not {(width, height)}")
                out[position] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except pillow.UnidentifiedImageError as error:
            raise InputError(f"data.path: image {position} of {where} is no image") from error
        except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
            raise InputError(f"data.path: image {position} of {where}: {error}") from error


_IMAGE_COLUMNS = ("img", "image")
_EXPECTED = "columns img (or image) with a field bytes, and label"


def find_split(folder: Path, split: str) -> list[Path]:
    """Return the files of a split: ``SPLIT.parquet``, or the shards that a hub names.

    Shards are ``SPLIT-00000-of-00002.parquet`` and so on, in the folder or in ``data`` or the name
    of a configuration beneath it. Empty if there is neither.

    Raises
    ------
    InputError
        If a shard is missing, or shards of several downloads lie beside each other.
    """
    whole = folder / f"{split}.parquet"
    if whole.is_file():
        return [whole]
    shards = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    shards = shards or sorted(folder.glob(f"*/{split}-*-of-*.parquet"))
    if not shards:
        return []
    count = shards[0].stem.rpartition("-of-")[2].partition("-")[0]
    numbers = range(int(count)) if count.isdecimal() else ()
    expected = [f"{split}-{number:05d}-of-{count}" for number in numbers]
    # A hub's older files carry a digest behind the numbers.
    found = [shard.stem[: len(f"{split}-00000-of-00000")] for shard in shards]
    if found != expected or len({shard.parent for shard in shards}) > 1:
        raise InputError(
            f"data.path: {folder} has {', '.join(shard.name for shard in shards)}; "
            f"allowed: all shards of one download, {split}-00000-of-{count}.parquet and so on"
        )
    return shards


def read_encoded(files: Sequence[Path]) -> Encoded:
    """Read encoded images and their labels from the files of a split, in their order.

    Parameters
    ----------
    files : sequence of Path
        Parquet files with a column ``img`` or ``image`` (struct of ``bytes`` and more) and an
        integer column ``label``.

    Raises
    ------
    InputError
        As :func:`_read_file`.
    """
    parts = [_read_file(file) for file in files]
    images = [image for part in parts for image in part.images]
    return Encoded(images, np.concatenate([part.labels for part in parts]))


def _read_file(file: Path) -> Encoded:
    """Read one file.

    Raises
    ------
    InputError
        If the file is not parquet, has other columns or missing values, or pyarrow is not
        installed.
    """
    arrow = require("pyarrow", extra="data")
    parquet = require("pyarrow.parquet", extra="data")
    try:
        with parquet.ParquetFile(file) as source:
            names = source.schema_arrow.names
            column = next((name for name in _IMAGE_COLUMNS if name in names), None)
            if column is None or "label" not in names:
                raise _wrong(file, f"its columns are {', '.join(names)}")
            table = source.read(columns=[column, "label"])
    except (arrow.ArrowException, OSError) as error:
        raise _wrong(file, str(error).splitlines()[0]) from error
    images, labels = table[column].combine_chunks(), table["label"].combine_chunks()
    if not arrow.types.is_integer(labels.type) or labels.null_count:
        raise _wrong(file, "label is not a column of whole numbers")
    if not arrow.types.is_struct(images.type) or images.type.get_field_index("bytes") < 0:
        raise _wrong(file, f"{column} has no field bytes")
    content = images.field("bytes")
    binary = arrow.types.is_binary(content.type) or arrow.types.is_large_binary(content.type)
    if not binary or images.null_count or content.null_count:
        raise _wrong(file, f"{column}.bytes is not binary, or has missing values")
    return Encoded(content.to_pylist(), labels.to_numpy(zero_copy_only=False).astype(np.int64))


def _wrong(file: Path, reason: str) -> InputError:
    return InputError(f"data.path: {file} must be a parquet file with {_EXPECTED}; {reason}")


_HUB_NAME = "uoft-cs/cifar10"
_NUM_CLASSES = 10
_SIDE = 32
# Of the original data's training split, as commonly used.
CHANNEL_MEAN = (0.4914, 0.4822, 0.4465)
CHANNEL_STD = (0.2470, 0.2435, 0.2616)


def load_cifar10(path: str) -> DataSplit:
    """Load CIFAR-10.

    Parameters
    ----------
    path : str
        Folder with ``train.parquet`` and ``test.parquet``, or with their shards as a hub writes
        them (``train-00000-of-00002.parquet``); empty to download the data set with
        ``flwr-datasets``.

    Raises
    ------
    InputError
        If files are missing or wrong, the download fails, or a library is not installed.
    """
    load = (
        _load_hub if not path else lambda split: load_cifar10_split(Path(path).expanduser(), split)
    )
    return DataSplit(load("train"), load("test"))


def load_cifar10_split(folder: Path, split: str) -> ArrayData:
    """Load one split from ``{split}.parquet``, or the shards of it, in a folder.

    Raises
    ------
    InputError
        If a file is missing or wrong.
    """
    files = find_split(folder, split)
    if not files:
        allowed = "a folder with train.parquet and test.parquet, or with a hub's shards of them"
        raise not_allowed("data.path", str(folder), allowed)
    return _load(f"cifar10-{_digest(files)}", str(files[0]), lambda: read_encoded(files))


def _digest(files: Sequence[Path]) -> str:
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").digest())
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    return whole.hex()[:32]


def _load_hub(split: str) -> ArrayData:
    return _load(f"cifar10-hub-{split}", _HUB_NAME, lambda: _download(split))


def _load(key: str, where: str, read: Callable[[], Encoded]) -> ArrayData:
    """Map the decoded split from the cache, decoding it first where it is not there."""

    def build(folder: Path) -> None:
        encoded = read()
        _check_labels(encoded.labels, where)
        shape = (len(encoded.labels), 3, _SIDE, _SIDE)
        pixels = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
        decode_images(encoded.images, pixels, where)
        pixels.flush()
        np.save(folder / "labels.npy", encoded.labels)

    folder = cached(key, build)
    try:
        # Copy-on-write: torch wants writable memory, and the pages stay shared until written.
        images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))
        labels = torch.from_numpy(np.load(folder / "labels.npy"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} in the cache is damaged; delete it ({error})") from error
    return ArrayData(images, labels, _NUM_CLASSES, CHANNEL_MEAN, CHANNEL_STD)


def _check_labels(labels: np.ndarray, where: str) -> None:
    if len(labels) == 0:
        raise InputError(f"data.path: {where} holds no images")
    if labels.min() < 0 or labels.max() >= _NUM_CLASSES:
        raise InputError(f"data.path: {where} has labels outside 0..{_NUM_CLASSES - 1}")


def _download(split: str) -> Encoded:
    hub = require("flwr_datasets", extra="simulation")
    image = require("datasets", extra="simulation").Image(decode=False)
    try:
        dataset = hub.FederatedDataset(dataset=_HUB_NAME, partitioners={"train": 1}, shuffle=False)
        table = dataset.load_split(split).cast_column("img", image)
    except Exception as error:  # the hub's and the network's errors have no common base
        raise InputError(
            f"data.path is empty and {_HUB_NAME} cannot be downloaded ({type(error).__name__}); "
            "set data.path to a folder with train.parquet and test.parquet"
        ) from error
    return Encoded([row["bytes"] for row in table["img"]], np.array(table["label"], np.int64))
