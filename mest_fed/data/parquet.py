"""Parquet files of encoded images, in the layout of the Hugging Face data sets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mest_fed.data.decode import Encoded
from mest_fed.data.optional import require
from mest_fed.errors import InputError

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
