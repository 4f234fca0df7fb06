"""CIFAR-10 from parquet files or from the Hugging Face hub; decoded once, then mapped."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mest_fed.data.cache import cached
from mest_fed.data.decode import Encoded, decode_images
from mest_fed.data.images import DataSplit, ImageData
from mest_fed.data.optional import require
from mest_fed.data.parquet import find_split, read_encoded
from mest_fed.errors import InputError, not_allowed

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


def load_cifar10_split(folder: Path, split: str) -> ImageData:
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


def _load_hub(split: str) -> ImageData:
    return _load(f"cifar10-hub-{split}", _HUB_NAME, lambda: _download(split))


def _load(key: str, where: str, read: Callable[[], Encoded]) -> ImageData:
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
    return ImageData(images, labels, _NUM_CLASSES, CHANNEL_MEAN, CHANNEL_STD)


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
